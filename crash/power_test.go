package crash

import (
	"bufio"
	"bytes"
	"database/sql"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"offpeak/internal/client"
)

// A kill leaves everything in the page cache; a failure of power takes with it what nobody has
// synced. So this test follows every call of a server that has to do with its disk, keeps a model
// of what the disk must have, and cuts the power at one call or another.

// powerCalls are the calls that change what is on a disk, and those that say something to others.
const powerCalls = "open,openat,creat,write,pwrite64,writev,pwritev,fsync,fdatasync,ftruncate,truncate," +
	"link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,rename,renameat,renameat2"

// A model is a disk that promises no more than POSIX does: the bytes of a file are kept once it was
// synced, a name is once its folder was.
type model struct {
	root    string
	names   map[string]*inode // as processes see it, by path
	kept    map[string]*inode // names that a failure of power leaves
	pending map[string]entry  // calls that have begun, by thread
	said    []said            // what others have been told
	syncs   int
}

type inode struct {
	folder  bool
	bytes   []byte
	kept    []byte  // what a failure of power leaves
	pending []patch // writes since
}

type patch struct {
	off   int64
	bytes []byte // nil: the file was cut here
}

// An entry is a call as it began, and what a sync that begins now will have kept when it ends.
type entry struct {
	name, args string
	bytes      []byte
	written    int
	names      map[string]*inode
}

// A said is what a client was told: the object exists, with so many results recorded.
type said struct {
	id      string
	results int64
}

func newModel(root string) *model {
	return &model{root: root, names: map[string]*inode{}, kept: map[string]*inode{}, pending: map[string]entry{}}
}

var (
	tracedFd   = regexp.MustCompile(`^(\d+)<([^>]*)>(?:, )?`)
	toldObject = regexp.MustCompile(`\{"id":"(?:file-|batch_)[^\n]*\}`)
)

// follow takes one line of the trace. It reports whether something was said to others, which is
// said as soon as the call begins.
func (m *model) follow(t *testing.T, line string) (spoke bool) {
	t.Helper()
	thread, line, _ := strings.Cut(strings.TrimRight(line, "\n"), " ")
	line = strings.TrimLeft(line, " ")
	name, args, called := strings.Cut(line, "(")
	if rest, unfinished := strings.CutSuffix(args, " <unfinished ...>"); unfinished && called {
		m.pending[thread], spoke = m.begin(t, name, rest)
		return spoke
	}
	end := strings.LastIndex(line, ") ")
	if end < 0 {
		return false // a signal, or a thread that was killed
	}
	result, _, _ := strings.Cut(strings.TrimLeft(line[end+1:], " ="), " ")
	result, _, _ = strings.Cut(result, "<") // what a descriptor is of
	if _, rest, resumed := strings.Cut(line[:end], " resumed>"); resumed && strings.HasPrefix(line, "<... ") {
		e := m.pending[thread]
		e.args += rest
		m.end(t, e, result)
		return false
	}
	if !called || strings.HasPrefix(line, "---") {
		return false
	}
	e, spoke := m.begin(t, name, args[:end-len(name)-1])
	m.end(t, e, result)
	return spoke
}

func (m *model) begin(t *testing.T, name, args string) (e entry, spoke bool) {
	e = entry{name: name, args: args}
	fd := tracedFd.FindStringSubmatch(args)
	switch {
	case fd == nil:
	case name == "fsync" || name == "fdatasync":
		if i := m.names[fd[2]]; i != nil && i.folder {
			e.names = map[string]*inode{}
			for path, i := range m.names {
				if filepath.Dir(path) == fd[2] {
					e.names[path] = i
				}
			}
		} else if i != nil {
			e.bytes, e.written = bytes.Clone(i.bytes), len(i.pending)
		}
	case name == "write" && !strings.HasPrefix(fd[2], m.root) && strings.Contains(args, `HTTP/1.1 200`):
		for _, object := range toldObject.FindAllString(unquote(t, args), -1) {
			var b client.Batch
			if err := json.Unmarshal([]byte(object), &b); err != nil {
				t.Fatalf("%s: %v", object, err)
			}
			m.said = append(m.said, said{b.ID, b.RequestCounts.Completed + b.RequestCounts.Failed})
			spoke = true
		}
	}
	return e, spoke
}

func (m *model) end(t *testing.T, e entry, result string) {
	t.Helper()
	if strings.HasPrefix(result, "-") || result == "?" {
		return
	}
	fd := tracedFd.FindStringSubmatch(e.args)
	var paths []string
	for rest := e.args; fd == nil && len(paths) < 2; {
		quoted, after, ok := firstString(rest)
		if !ok {
			break
		}
		paths, rest = append(paths, unquote(t, quoted)), after
	}
	ours := func(path string) bool { return strings.HasPrefix(path, m.root) && !strings.HasSuffix(path, "-shm") }
	switch e.name {
	case "open", "openat":
		if path := paths[0]; ours(path) && strings.Contains(e.args, "O_CREAT") && m.names[path] == nil {
			m.names[path] = &inode{}
		} else if i := m.names[path]; i != nil && strings.Contains(e.args, "O_TRUNC") {
			i.cut(0)
		}
	case "mkdir", "mkdirat":
		if ours(paths[0]) {
			m.names[paths[0]] = &inode{folder: true}
		}
	case "linkat", "link":
		if ours(paths[1]) {
			m.names[paths[1]] = m.names[paths[0]]
		}
	case "unlink", "unlinkat", "rmdir":
		delete(m.names, paths[0])
	case "write", "pwrite64":
		i := m.names[fd[2]]
		if i == nil {
			return
		}
		text := []byte(unquote(t, e.args))
		n, _ := strconv.Atoi(result)
		off := int64(len(i.bytes)) // Go's files are written from front to back
		if e.name == "pwrite64" {
			off, _ = strconv.ParseInt(e.args[strings.LastIndex(e.args, " ")+1:], 10, 64)
		}
		i.write(off, text[:n])
	case "ftruncate":
		if i := m.names[fd[2]]; i != nil {
			size, _ := strconv.ParseInt(e.args[strings.LastIndex(e.args, " ")+1:], 10, 64)
			i.cut(size)
		}
	case "fsync", "fdatasync":
		m.syncs++
		if i := m.names[fd[2]]; i != nil && !i.folder {
			i.kept, i.pending = e.bytes, i.pending[e.written:]
		} else if e.names != nil {
			for path := range m.kept {
				if filepath.Dir(path) == fd[2] && e.names[path] == nil {
					delete(m.kept, path)
				}
			}
			maps.Copy(m.kept, e.names)
		}
	default:
		if fd != nil && m.names[fd[2]] != nil || fd == nil && slices.ContainsFunc(paths, ours) {
			t.Fatalf("the model knows nothing of %s(%.200s", e.name, e.args)
		}
	}
}

// firstString returns the first string in the arguments of a call, in its quotes, and what follows it.
func firstString(args string) (quoted, rest string, ok bool) {
	from := strings.IndexByte(args, '"')
	if from < 0 {
		return "", "", false
	}
	for to := from + 1; to < len(args); to++ {
		switch args[to] {
		case '\\':
			to++
		case '"':
			return args[from : to+1], args[to+1:], true
		}
	}
	return "", "", false
}

// unquote returns the first string in the arguments of a call.
func unquote(t *testing.T, args string) string {
	t.Helper()
	quoted, _, _ := firstString(args)
	s, err := strconv.Unquote(quoted)
	if err != nil {
		t.Fatalf("%.200s: %v", args, err)
	}
	return s
}

func (i *inode) write(off int64, text []byte) {
	i.bytes = patched(i.bytes, patch{off, text})
	i.pending = append(i.pending, patch{off, text})
}

func (i *inode) cut(size int64) {
	i.bytes = patched(i.bytes, patch{size, nil})
	i.pending = append(i.pending, patch{size, nil})
}

func patched(b []byte, p patch) []byte {
	end := p.off + int64(len(p.bytes))
	if grow := end - int64(len(b)); grow > 0 {
		b = append(b, make([]byte, grow)...)
	}
	copy(b[p.off:], p.bytes)
	if p.bytes == nil {
		b = b[:p.off]
	}
	return b
}

// cutPower makes the folder that is left if the power fails now. What was not synced may be gone,
// there, or, by chance, some of it, as a disk is free to do.
func (m *model) cutPower(t *testing.T, r *rand.Rand, chances float64, dir string) {
	t.Helper()
	luck := func() bool { return r.Float64() < chances }
	left := map[string]*inode{}
	for path, i := range m.kept {
		if m.names[path] == i || !luck() { // what was removed may be back
			left[path] = i
		}
	}
	for path, i := range m.names {
		if m.kept[path] == nil && luck() {
			left[path] = i
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range slices.Sorted(maps.Keys(left)) {
		i, to := left[path], dir+strings.TrimPrefix(path, m.root)
		if _, err := os.Stat(filepath.Dir(to)); err != nil || path == m.root {
			continue // the folder that it was in is gone
		}
		if i.folder {
			if err := os.Mkdir(to, 0o700); err != nil {
				t.Fatal(err)
			}
			continue
		}
		text := bytes.Clone(i.kept)
		for _, p := range i.pending {
			if !luck() {
				continue
			}
			if n := len(p.bytes) / 512; n > 1 && chances < 1 && r.IntN(4) == 0 {
				p.bytes = p.bytes[:512*(1+r.IntN(n))] // torn
			}
			text = patched(text, p)
		}
		if err := os.WriteFile(to, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPowerFailure cuts the power of a server. Whatever anybody was told until then is there.
func TestPowerFailure(t *testing.T) {
	slow(t)
	needStrace(t)
	t.Parallel()
	r, u, w, root := chance(t), newUpstream(t, killSim), newWork(), t.TempDir()
	dir, trace := filepath.Join(root, "data"), filepath.Join(root, "trace")
	u.next(t)
	s := serveTraced(t, dir, u.url(), "-y", "-x", "-s", "10000000", "-o", trace, "-e", "trace="+powerCalls).mustBeReady()
	for _, n := range []int{3, 40, 5, 120, 2, 10} {
		id := w.submit(t, s.api, n)
		poll(t, "the end", func() bool { // and every look is a promise
			b, err := s.api.Batch(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			return ended(*b)
		})
	}
	w.submit(t, s.api, 30)
	u.awaitAnswers(t, s.process, 200)
	s.kill()
	u.await(t, "the last connection's end", func() bool { return u.live == 0 })

	text, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.Count(text, []byte("\n"))
	m := newModel(dir)
	m.names[dir], m.names[root] = &inode{folder: true}, &inode{folder: true}
	// After a sync, as there is more than before; when something is said, as there has to be more; and
	// at any other call, which matters only to what is not synced.
	often, cuts, runs := float64(rounds(t, 20))/100, 0, 0
	scan := bufio.NewScanner(bytes.NewReader(text))
	scan.Buffer(nil, 1<<30)
	for scan.Scan() {
		syncs := m.syncs
		spoke := m.follow(t, scan.Text())
		if often := map[bool]float64{true: often, false: often / 20}[spoke || m.syncs > syncs]; r.Float64() >= often {
			continue
		}
		cuts++
		chances := []float64{0, 0, 0.5, r.Float64(), 1}[r.IntN(5)]
		cut := filepath.Join(root, fmt.Sprint("cut", cuts))
		m.cutPower(t, r, chances, cut)
		m.check(t, cut)
		if !t.Failed() && r.IntN(8) == 0 {
			runs++
			u.next(t)
			s := serve(t, cut, u.url()).mustBeReady()
			some := newWork()
			some.bodies, some.inputs = w.bodies, w.inputs
			some.finish(t, s.api, u)
			s.stop()
		}
		if t.Failed() {
			t.Fatalf("cut %d, at line %d of the trace, %.2f of what was not synced is there", cuts, bytes.Count(text[:bytes.Index(text, scan.Bytes())], []byte("\n")), chances)
		}
		os.RemoveAll(cut)
	}
	if err := scan.Err(); err != nil {
		t.Fatal(err)
	}
	if len(m.said) == 0 || cuts == 0 {
		t.Errorf("%d things were said; %d cuts", len(m.said), cuts)
	}
	t.Logf("%d calls to the kernel; the power was cut %d times, and a server began with what was left %d times; %d things were said", lines, cuts, runs, len(m.said))
}

// check holds a folder against what others have been told.
func (m *model) check(t *testing.T, dir string) {
	t.Helper()
	if len(m.said) == 0 {
		return // perhaps there is no database yet
	}
	readFolder(t, dir)
	copied := filepath.Join(t.TempDir(), "copy")
	copyFolder(t, dir, copied)
	db, err := sql.Open("sqlite", filepath.Join(copied, "offpeak.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, s := range m.said {
		switch {
		case strings.HasPrefix(s.id, "file-"):
			if column[int](t, db, fmt.Sprintf("SELECT count(*) FROM files WHERE id = '%s'", s.id))[0] != 1 {
				t.Errorf("file %s was acknowledged, and is gone", s.id)
			}
		default:
			got := column[int64](t, db, fmt.Sprintf(`SELECT completed + failed + coalesce(
				(SELECT sum(completed + failed) FROM segments WHERE batch_id = batches.id AND sealed_at IS NULL), 0)
				FROM batches WHERE id = '%s'`, s.id))
			if len(got) != 1 || got[0] < s.results {
				t.Errorf("batch %s was shown with %d results, and has %v", s.id, s.results, got)
			}
		}
	}
	for _, blob := range column[string](t, db, `SELECT blob_key || ' ' || bytes FROM file_parts
			UNION SELECT output_key || ' ' || output_bytes FROM segments WHERE output_key IS NOT NULL
			UNION SELECT error_key || ' ' || error_bytes FROM segments WHERE error_key IS NOT NULL`) {
		key, size, _ := strings.Cut(blob, " ")
		if st, err := os.Stat(filepath.Join(dir, "blobs", key[:2], key)); err != nil || fmt.Sprint(st.Size()) != size {
			t.Errorf("blob %s of %s bytes is named, and there is %v, %v", key, size, st, err)
		}
	}
	examine(t, dir, "blob-orphan")
}
