package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// groups is a Store in memory.
type groups [][]byte

func (g groups) JournalSeqs(context.Context, int64) ([]int64, error) {
	seqs := make([]int64, len(g))
	for i := range g {
		seqs[i] = int64(i)
	}
	return seqs, nil
}

func (g groups) JournalGroup(_ context.Context, _, seq int64) ([]byte, error) { return g[seq], nil }

// What was packed into groups in any order is read back by index.
func TestReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 200).Draw(t, "requests")
		recorded := rapid.SliceOfNDistinct(rapid.IntRange(0, n-1), 0, n, rapid.ID).Draw(t, "recorded")
		line := func(i int) []byte {
			return fmt.Appendf(nil, `{"custom_id":"%d","x":"%s"}`+"\n", i, bytes.Repeat([]byte("ab"), i%50))
		}
		p := NewPacker(1 << 16)
		defer p.Close()
		var g groups
		for rest := recorded; len(rest) > 0; {
			take := rapid.IntRange(1, len(rest)).Draw(t, "group")
			var data []byte
			for _, i := range rest[:take] {
				data = AppendEntry(data, i, i%3 != 0, line(i))
			}
			g = append(g, p.Pack(data))
			rest = rest[take:]
		}
		r, err := Read(t.Context(), g, 1, n)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		want := map[int]bool{}
		for _, i := range recorded {
			want[i] = true
		}
		for i := range n {
			if r.Has(i) != want[i] {
				t.Fatalf("request %d: recorded %v, want %v", i, r.Has(i), want[i])
			}
			if !want[i] {
				continue
			}
			got, ok, err := r.Line(t.Context(), i)
			if err != nil || ok != (i%3 != 0) || !bytes.Equal(got, line(i)) {
				t.Fatalf("request %d: %q, %v, %v", i, got, ok, err)
			}
		}
	})
}

// counted is a Store that counts what it is asked for.
type counted struct {
	groups
	loads int
}

func (c *counted) JournalGroup(ctx context.Context, segment, seq int64) ([]byte, error) {
	c.loads++
	return c.groups.JournalGroup(ctx, segment, seq)
}

// Of a segment that is larger than what may be in memory, a group is unpacked as often as there are
// stretches of lines that it has some of, however its results are mixed with those of its neighbours.
func TestGroupsAreUnpackedSeldom(t *testing.T) {
	const n, size, each = 1000, 40_000, 90 // lines, bytes of one, lines of a group: the segment has 40 MB
	stretches := n * size / cacheBytes
	for _, test := range []struct {
		name  string
		order func() []int
		most  func(groups int) int
	}{
		{"neighbours are mixed", func() []int {
			order := make([]int, n)
			for i := range order {
				order[i] = i
			}
			for i := 0; i+200 < len(order); i += 100 { // half of each hundred comes a hundred later
				for k := range 50 {
					order[i+2*k], order[i+100+2*k] = order[i+100+2*k], order[i+2*k]
				}
			}
			return order
		}, func(groups int) int { return 3 * groups }},
		{"no order", func() []int { return rand.New(rand.NewPCG(1, 2)).Perm(n) },
			func(groups int) int { return (stretches + 2) * groups }},
	} {
		line := func(i int) []byte { return append(bytes.Repeat([]byte{byte(i), byte(i >> 8)}, size/2-1), '\n') }
		p := NewPacker(1 << 16)
		defer p.Close()
		var c counted
		order := test.order()
		for batch := range slices.Chunk(order, each) {
			var data []byte
			for _, i := range batch {
				data = AppendEntry(data, i, true, line(i))
			}
			c.groups = append(c.groups, p.Pack(data))
		}
		r, err := Read(t.Context(), &c, 1, n)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(order)
		for _, i := range order {
			got, ok, err := r.Line(t.Context(), i)
			if err != nil || !ok || !bytes.Equal(got, line(i)) {
				t.Fatalf("%s: request %d: %d bytes, %v, %v", test.name, i, len(got), ok, err)
			}
			inMemory := len(r.lines)
			for _, data := range r.cache {
				inMemory += len(data)
			}
			if inMemory > cacheBytes {
				t.Fatalf("%s: %d bytes are in memory", test.name, inMemory)
			}
		}
		r.Close()
		if most := test.most(len(c.groups)); c.loads > most {
			t.Errorf("%s: %d groups were unpacked %d times, more than %d", test.name, len(c.groups), c.loads, most)
		}
	}
}

// A line larger than what may be in memory is read all the same.
func TestLargeLine(t *testing.T) {
	large := append(bytes.Repeat([]byte("x"), cacheBytes+1), '\n')
	p := NewPacker(1 << 16)
	defer p.Close()
	g := groups{
		p.Pack(AppendEntry(AppendEntry(nil, 2, true, []byte("2\n")), 0, false, []byte("0\n"))),
		p.Pack(AppendEntry(nil, 1, true, large)),
	}
	r, err := Read(t.Context(), g, 1, 4)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for i, want := range []string{"0\n", string(large), "2\n"} {
		for range 2 {
			got, ok, err := r.Line(t.Context(), i)
			if err != nil || ok != (i > 0) || string(got) != want {
				t.Errorf("request %d: %d bytes, %v, %v", i, len(got), ok, err)
			}
		}
	}
	if got, _, err := r.Line(t.Context(), 0); err != nil || string(got) != "0\n" { // and once more from the beginning
		t.Errorf("request 0: %q, %v", got, err)
	}
}

// A result of a request that the segment does not have is damage, and no reason to panic.
func TestForeignIndex(t *testing.T) {
	p := NewPacker(1 << 16)
	defer p.Close()
	const n = 3
	for _, size := range []int{1, pieceBytes} { // in one group, and in two
		r, err := Read(t.Context(), groupsOf(p, n-1, true, text(size)), 1, n)
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		if _, err := Read(t.Context(), groupsOf(p, n, true, text(size)), 1, n); !errors.Is(err, errDamaged) {
			t.Errorf("request %d of %d, with %d bytes: error %v", n, n, size, err)
		}
	}
}

// Whatever bytes a group has, reading it ends in entries within it or in an error.
func FuzzEntries(f *testing.F) {
	f.Add(AppendEntry(AppendEntry(nil, 3, true, []byte("line\n")), 900, false, []byte("other\n")))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		for e, err := range Entries(data) {
			if err != nil {
				if !errors.Is(err, errDamaged) {
					t.Errorf("error %v", err)
				}
				return
			}
			if !bytes.Equal(data[e.Offset:e.Offset+len(e.Line)], e.Line) {
				t.Errorf("offset %d is not that of %q", e.Offset, e.Line)
			}
		}
	})
}

func TestUnknownFormat(t *testing.T) {
	u := NewUnpacker()
	defer u.Close()
	if _, err := u.Unpack([]byte{99, 1, 2}); err == nil {
		t.Error("a group of an unknown format was unpacked")
	}
	if _, err := u.Unpack(nil); err == nil {
		t.Error("an empty group was unpacked")
	}
}

// A damaged group that claims to unpack to more than there is memory is an error.
func TestBomb(t *testing.T) {
	u := NewUnpacker()
	defer u.Close()
	before := allocated()
	// A frame with a content size of 64 GiB, of which there is one block of the same byte, repeated.
	frame := []byte{0x28, 0xb5, 0x2f, 0xfd, 0xe0}
	frame = binary.LittleEndian.AppendUint64(frame, 64<<30)
	block := uint32(128<<10)<<3 | 1<<1
	for range 1000 {
		frame = append(frame, byte(block), byte(block>>8), byte(block>>16), 'x')
	}
	if _, err := u.Unpack(append([]byte{formatZstd}, frame...)); err == nil {
		t.Error("it was unpacked")
	}
	// One that does not say what it comes to.
	frame = append(frame[:0], 0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x50)
	for range 1000 {
		frame = append(frame, byte(block), byte(block>>8), byte(block>>16), 'x')
	}
	if _, err := u.Unpack(append([]byte{formatZstd}, frame...)); err == nil {
		t.Error("it was unpacked")
	}
	// And one that comes to more than it says.
	frame = append(frame[:0], 0x28, 0xb5, 0x2f, 0xfd, 0xa0)
	frame = binary.LittleEndian.AppendUint32(frame, 1<<20)
	for range 1 << 16 {
		frame = append(frame, byte(block), byte(block>>8), byte(block>>16), 'x')
	}
	if _, err := u.Unpack(append([]byte{formatZstd}, frame...)); err == nil {
		t.Error("it was unpacked")
	}
	if took := (allocated() - before) >> 20; took > 64 {
		t.Errorf("it took %d MiB", took)
	}
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}
