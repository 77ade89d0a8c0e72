package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
)

// text is so many bytes of what compresses well, noise of what does not.
func text(n int) []byte { return bytes.Repeat([]byte("words of an answer, "), n/20+1)[:n] }

func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return bytes.ReplaceAll(b, []byte("\n"), []byte(" "))
}

// Large lines in groups of their own are read back like others, however they are asked for.
func TestLargeGroups(t *testing.T) {
	p := NewPacker(256 << 10)
	defer p.Close()
	const head, end = `{"body":"`, `"}` + "\n"
	bodies := [][]byte{text(cacheBytes + 1), text(100), noise(cacheBytes + 1), nil, text(2 << 20), noise(2 << 20), text(cacheBytes - 20)}
	line := func(i int) []byte { return append(append([]byte(head), bodies[i]...), end...) }
	var g groups
	for i := range bodies {
		switch {
		case i == 3: // has no result
		case len(bodies[i]) < 1<<20:
			g = append(g, p.Pack(AppendEntry(nil, i, true, line(i))))
		default:
			g = append(g, p.PackLarge(i, i%4 != 0, []byte(head), bodies[i], []byte(end)))
			u := NewUnpacker()
			want := AppendEntry(nil, i, i%4 != 0, line(i))
			if got, err := u.Unpack(g[len(g)-1]); err != nil || !bytes.Equal(got, want) {
				t.Errorf("request %d: its group unpacks to %d bytes, %v, want %d", i, len(got), err, len(want))
			}
			u.Close()
		}
	}
	for i, format := range []byte{formatZstd, formatZstd, formatPlain, formatZstd, formatPlain, formatZstd} {
		if g[i][0] != format || format == formatZstd && len(g[i]) > 1<<20 {
			t.Errorf("group %d has format %d and %d bytes", i, g[i][0], len(g[i]))
		}
	}
	r, err := Read(t.Context(), g, 1, len(bodies))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for range 2 { // and once more from the beginning
		for i := range bodies {
			if r.Has(i) != (i != 3) {
				t.Fatalf("request %d: recorded %v", i, r.Has(i))
			}
			if i == 3 {
				continue
			}
			var got bytes.Buffer
			if err := r.WriteLine(t.Context(), i, &got); err != nil || !bytes.Equal(got.Bytes(), line(i)) {
				t.Errorf("request %d: %d bytes, %v, want %d", i, got.Len(), err, len(line(i)))
			}
			if want := i == 1 || i%4 != 0; r.OK(i) != want {
				t.Errorf("request %d: ok is %v", i, !want)
			}
		}
	}
}

// What is small and what is large may be in one group: so it was before large lines had their own.
func TestMixedGroup(t *testing.T) {
	for _, body := range [][]byte{text(cacheBytes + 1), noise(cacheBytes + 1)} {
		large := append(body, '\n')
		p := NewPacker(256 << 10)
		defer p.Close()
		g := groups{p.Pack(AppendEntry(AppendEntry(AppendEntry(nil, 2, true, []byte("2\n")), 0, false, large), 1, true, []byte("1\n")))}
		r, err := Read(t.Context(), g, 1, 3)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for i, want := range []string{string(large), "1\n", "2\n"} {
			var got bytes.Buffer
			if err := r.WriteLine(t.Context(), i, &got); err != nil || got.String() != want || r.OK(i) != (i > 0) {
				t.Errorf("request %d: %d bytes, %v, %v, want %d", i, got.Len(), r.OK(i), err, len(want))
			}
		}
	}
}

// Reading back a large line takes a fraction of its size, and packing one what it is packed to.
func TestLargeLineTakesLittle(t *testing.T) {
	const size = 48 << 20
	for _, test := range []struct {
		name string
		body []byte
		most uint64 // in MiB: to pack it and to write it
	}{{"text", text(size), 12}, {"noise", noise(size), size>>20 + 12}} {
		p := NewPacker(256 << 10)
		before := allocated()
		g := groups{p.PackLarge(0, true, []byte(`{"body":"`), test.body, []byte(`"}`+"\n"))}
		if took := (allocated() - before) >> 20; took > test.most {
			t.Errorf("%s: packing took %d MiB, want %d at most", test.name, took, test.most)
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
		if took := (allocated() - before) >> 20; took > 12 {
			t.Errorf("%s: reading took %d MiB, want 12 at most", test.name, took)
		}
	}
}

// A large group that is damaged anywhere is an error, and never read as if it were another.
func TestDamagedLargeGroup(t *testing.T) {
	p := NewPacker(256 << 10)
	defer p.Close()
	body := append(noise(1<<20), text(cacheBytes)...)
	good := p.PackLarge(0, true, body, []byte("\n"))
	if good[0] != formatZstd {
		t.Fatal("it is not compressed")
	}
	seed := rand.Uint64()
	t.Log("seed", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for i := range 60 {
		bad := bytes.Clone(good)
		if at := 1 + rnd.IntN(len(bad)-1); i%2 == 0 {
			bad[at] ^= byte(1 << rnd.IntN(8))
		} else {
			bad = bad[:at]
		}
		r, err := Read(t.Context(), groups{bad}, 1, 1)
		if err != nil {
			continue
		}
		// Some bits of a frame mean nothing.
		var got bytes.Buffer
		if !r.Has(0) {
			t.Error("the line is not there")
		} else if err := r.WriteLine(t.Context(), 0, &got); err == nil && !bytes.Equal(got.Bytes(), append(body, '\n')) {
			t.Errorf("another line was read, of %d bytes", got.Len())
		}
		r.Close()
	}
}

// A group that changes after it was indexed is an error.
func TestGroupChanges(t *testing.T) {
	p := NewPacker(256 << 10)
	defer p.Close()
	g := groups{p.PackLarge(0, true, text(cacheBytes+1), []byte("\n"))}
	r, err := Read(t.Context(), g, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	g[0] = p.PackLarge(0, true, text(cacheBytes), []byte("\n"))
	if err := r.WriteLine(t.Context(), 0, io.Discard); !errors.Is(err, errDamaged) {
		t.Errorf("error %v", err)
	}
}

// Whatever bytes a group has, a Reader finds the entries in it that Entries finds.
func FuzzReader(f *testing.F) {
	f.Add(AppendEntry(AppendEntry(nil, 3, true, []byte("line\n")), 900, false, []byte("other\n")))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{1, 1, 5, 'x'})
	f.Fuzz(func(t *testing.T, data []byte) {
		var want []string
		var wantErr error
		for e, err := range Entries(data) {
			if wantErr = err; err == nil {
				want = append(want, fmt.Sprint(e.Index, e.OK, e.Offset, e.Line))
			}
		}
		var got []string
		var gotErr error
		for r := newReader(bytes.NewReader(data)); gotErr == nil; {
			e, size, err := r.Next()
			if gotErr = err; err == nil {
				var line bytes.Buffer
				if _, gotErr = r.WriteTo(&line); gotErr == nil {
					if int64(line.Len()) != size {
						t.Errorf("%d bytes were written of %d", line.Len(), size)
					}
					got = append(got, fmt.Sprint(e.Index, e.OK, e.Offset, line.Bytes()))
				}
			}
		}
		if (gotErr == io.EOF) != (wantErr == nil) || gotErr != io.EOF && !errors.Is(gotErr, errDamaged) {
			t.Errorf("error %v, want %v", gotErr, wantErr)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("got %v, want %v", got, want)
		}
	})
}
