package journal

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
)

// text is so many bytes of what compresses well, noise of what does not.
func text(n int) []byte { return bytes.Repeat([]byte("words of an answer, "), n/20+1)[:n] }

func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return bytes.ReplaceAll(b, []byte("\n"), []byte(" "))
}

const lineStart, lineEnd = `{"body":"`, `"}` + "\n"

// groupsOf makes the groups of a line around a body.
func groupsOf(p *Packer, index int, ok bool, body []byte) (g groups) {
	ended := false
	for group, last := range p.Groups(index, ok, []byte(lineStart), body, nil, []byte(lineEnd)) {
		if ended {
			panic("a group follows the last")
		}
		g, ended = append(g, group), last
	}
	if !ended {
		panic("there is no last group")
	}
	return g
}

// Lines of all sizes are read back, those in several groups like others, whatever stands between.
func TestPieces(t *testing.T) {
	p := NewPacker(256 << 10)
	defer p.Close()
	around := len(lineStart) + len(lineEnd)
	bodies := [][]byte{
		text(3*pieceBytes + 1), text(100), noise(2*pieceBytes + 5), nil, text(pieceBytes - around), text(pieceBytes - around + 1),
		noise(pieceBytes), text(2*pieceBytes - around), text(1 << 20), noise(3 << 20),
	}
	const without, unended = 3, 7 // has no result; is sent twice
	ok := func(i int) bool { return i%4 != 0 }
	line := func(i int) []byte { return slices.Concat([]byte(lineStart), bodies[i], []byte(lineEnd)) }
	queues := make([]groups, len(bodies))
	for i := range bodies {
		if i != without {
			queues[i] = groupsOf(p, i, ok(i), bodies[i])
		}
	}
	for i, want := range []int{4, 1, 3, 0, 1, 2, 2, 2, 1, 1} {
		if len(queues[i]) != want {
			t.Errorf("request %d has %d groups, want %d", i, len(queues[i]), want)
		}
	}
	if one := queues[8][0]; one[0] != formatZstd || one[0] != p.Pack(AppendEntry(nil, 8, false, line(8)))[0] {
		t.Errorf("the group of a line in one piece has format %d", one[0])
	}
	// What a former owner of the segment did not record to its end is void.
	queues[unended] = append(groupsOf(p, unended, true, noise(3*pieceBytes))[:3], queues[unended]...)
	// The groups of different requests are mixed in any order.
	seed := rand.Uint64()
	t.Log("seed", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	var g groups
	for {
		i := rnd.IntN(len(queues))
		if len(queues[i]) > 0 {
			g, queues[i] = append(g, queues[i][0]), queues[i][1:]
		} else if !slices.ContainsFunc(queues, func(q groups) bool { return len(q) > 0 }) {
			break
		}
	}
	r, err := Read(t.Context(), g, 1, len(bodies))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 2 { // and once more from the beginning
		for i := range bodies {
			if r.Has(i) != (i != without) {
				t.Fatalf("request %d: recorded %v", i, r.Has(i))
			}
			if i == without {
				continue
			}
			var got bytes.Buffer
			if err := r.WriteLine(t.Context(), i, &got); err != nil || !bytes.Equal(got.Bytes(), line(i)) {
				t.Errorf("request %d: %d bytes, %v, want %d", i, got.Len(), err, len(line(i)))
			}
			if l, o, err := r.Line(t.Context(), i); err != nil || o != ok(i) || r.OK(i) != ok(i) || !bytes.Equal(l, line(i)) {
				t.Errorf("request %d: %d bytes, %v, %v, want %d", i, len(l), o, err, len(line(i)))
			}
		}
	}
}

// A line that was not recorded to its end is none, wherever it broke off.
func TestUnendedLine(t *testing.T) {
	p := NewPacker(256 << 10)
	defer p.Close()
	whole := groupsOf(p, 1, true, text(3*pieceBytes))
	for n := range len(whole) {
		r, err := Read(t.Context(), whole[:n], 1, 2)
		if err != nil {
			t.Fatal(err)
		}
		if r.Has(0) || r.Has(1) {
			t.Errorf("a line is there after %d of %d groups", n, len(whole))
		}
		r.Close()
	}
}

// Of pieces that do not follow each other no line is made.
func TestMissingPiece(t *testing.T) {
	p := NewPacker(256 << 10)
	defer p.Close()
	whole := groupsOf(p, 0, true, text(3*pieceBytes))
	for missing := range len(whole) - 1 {
		g := slices.Delete(slices.Clone(whole), missing, missing+1)
		if _, err := Read(t.Context(), g, 1, 1); !errors.Is(err, errDamaged) {
			t.Errorf("without piece %d: error %v", missing, err)
		}
	}
	if _, err := Read(t.Context(), whole[1:], 1, 1); !errors.Is(err, errDamaged) {
		t.Errorf("without a beginning: error %v", err)
	}
}

// Who does not know pieces cannot take them for lines.
func TestPiecesHaveAFormat(t *testing.T) {
	p := NewPacker(256 << 10)
	defer p.Close()
	for _, body := range [][]byte{text(2 * pieceBytes), noise(2 * pieceBytes)} {
		for _, group := range groupsOf(p, 0, true, body) {
			if group[0] < formatPiece {
				t.Errorf("the format of a piece is %d", group[0])
			}
		}
	}
}

// Packing a line of 48 MiB that compresses, and reading back any, allocates a fraction of its size. What does not compress
// takes several times as much, a piece at a time.
func TestLargeLineTakesLittle(t *testing.T) {
	const size = 48 << 20
	for _, test := range []struct {
		name       string
		body       []byte
		pack, read uint64 // in MiB
	}{{"text", text(size), 16, 24}, {"noise", noise(size), 6 * size >> 20, 24}} {
		p := NewPacker(256 << 10)
		before := allocated()
		g := groupsOf(p, 0, true, test.body)
		if took := (allocated() - before) >> 20; took > test.pack {
			t.Errorf("%s: packing took %d MiB, want %d at most", test.name, took, test.pack)
		}
		p.Close()
		before = allocated()
		r, err := Read(t.Context(), g, 1, 1)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.WriteLine(t.Context(), 0, io.Discard); err != nil {
			t.Error(err)
		}
		r.Close()
		if took := (allocated() - before) >> 20; took > test.read {
			t.Errorf("%s: reading took %d MiB, want %d at most", test.name, took, test.read)
		}
	}
}
