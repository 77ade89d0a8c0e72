package journal

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// embedding is a finished line of an answer of so many floats.
func embedding(r *rand.Rand, floats int, separator string) []byte {
	line := []byte(`{"id":"batch_req_0","custom_id":"a","response":{"status_code":200,"request_id":"r","body":{"object":"list","data":[{"object":"embedding","index":0,"embedding":[`)
	for i := range floats {
		if i > 0 {
			line = append(line, separator...)
		}
		line = strconv.AppendFloat(line, r.NormFloat64()/50, 'g', 8, 64)
	}
	return append(line, `]}],"model":"m","usage":{"prompt_tokens":31,"total_tokens":31}}},"error":null}`+"\n"...)
}

// What eight characters go into is the same by whichever way, and whatever else is among them is seen.
func TestPack8(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	want := func(b []byte) (packed uint32, ok bool) {
		for i, c := range b {
			v := strings.IndexByte(numerals, c)
			if v < 0 {
				return 0, false
			}
			packed |= uint32(v) << (4 * i)
		}
		return packed, true
	}
	for range 200 {
		b := make([]byte, 8)
		for i := range b {
			b[i] = numerals[r.IntN(len(numerals))]
		}
		for at := range b {
			before := b[at]
			for c := range 256 {
				b[at] = byte(c)
				got, ok := pack8(b)
				if packed, is := want(b); ok != is || ok && got != packed {
					t.Fatalf("%q: %x, %v; want %x, %v", b, got, ok, packed, is)
				}
			}
			b[at] = before
		}
	}
}

// Whatever a line is, it is unpacked as it was.
func TestPackedLines(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		number := rapid.StringMatching(`-?[0-9]\.[0-9]{1,12}(e-[0-9]{2})?,( )?`)
		text := rapid.OneOf(number, number, number, rapid.StringN(0, 40, 80), rapid.SampledFrom([]string{"0", "12345678", "/", "*", "\n", "é", " ", "]},{"}))
		line := []byte(strings.Join(rapid.SliceOf(text).Draw(t, "line"), ""))
		packed := appendPacked([]byte("before"), line)
		got, err := appendUnpacked([]byte("before"), packed[6:])
		if err != nil || string(got) != "before"+string(line) {
			t.Fatalf("%q came back as %q, %v", line, got, err)
		}
	})
}

// Embeddings take little more than half, and nothing else is packed.
func TestWhatIsPacked(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	prose := []byte(strings.Repeat("The answer is forty-two, as everybody knows who has read the book. ", 100) + "\n")
	base64 := []byte(fmt.Sprintf(`{"embedding":"%x"}`+"\n", bytes.Repeat([]byte("\x00\x3f\x12\xa9"), 3072)))
	for _, test := range []struct {
		name string
		line []byte
		most float64 // of its length; 0: it is not packed
	}{
		{"dense", embedding(r, 3072, ","), 0.52},
		{"with spaces", embedding(r, 3072, ", "), 0.52},
		{"many", bytes.ReplaceAll(embedding(r, 3072, ","), []byte("7,"), []byte(`7]},{"object":"embedding","index":3,"embedding":[`)), 0},
		{"some", bytes.ReplaceAll(embedding(r, 3072, ","), []byte("777,"), []byte(`777]},{"object":"embedding","index":3,"embedding":[`)), 0.6},
		{"few", embedding(r, 30, ","), 0},
		{"prose", prose, 0},
		{"base64", base64, 0},
		{"digits between letters", bytes.Repeat([]byte("1234567890123x"), 1000), 0},
	} {
		data := AppendEntry(nil, 7, true, test.line)
		packed := packedBytes(data)
		switch {
		case test.most == 0 && packed > 0:
			t.Errorf("%s: it is packed, to %d of %d bytes", test.name, packed, len(test.line))
		case test.most > 0 && (packed == 0 || float64(packed) > test.most*float64(len(test.line))):
			t.Errorf("%s: %d of %d bytes are packed to %d", test.name, len(data), len(test.line), packed)
		}
	}
}

// Groups with packed lines are read back as any, by whoever asks for all of their lines and by whoever
// asks for one after the other; also those in which most is not packed.
func TestReadPacked(t *testing.T) {
	const n = 600
	r := rand.New(rand.NewPCG(5, 6))
	lines := make([][]byte, n)
	for i := range lines {
		lines[i] = fmt.Appendf(nil, `{"custom_id":"%d"}`+"\n", i)
		if i%3 != 0 {
			lines[i] = embedding(r, 3072, ",") // of which 8 MiB do not hold all
		}
		if i > n/2 && i%3 == 1 {
			lines[i] = []byte(strings.Repeat(fmt.Sprintf(`{"prose":"%d"}`, i), 7000) + "\n")
		}
	}
	p, u := NewPacker(1<<16), NewUnpacker()
	defer p.Close()
	defer u.Close()
	var g groups
	formats := map[byte]int{}
	order := r.Perm(n)
	for len(order) > 0 {
		var data []byte
		take := min(len(order), 5)
		for _, i := range order[:take] {
			data = AppendEntry(data, i, i%3 != 1, lines[i])
		}
		group := p.Pack(data)
		formats[group[0]]++
		plain, err := u.Unpack(group)
		if err != nil {
			t.Fatal(err)
		}
		k := 0
		for e, err := range Entries(plain) {
			if i := order[k]; err != nil || e.Index != i || e.OK != (i%3 != 1) || !bytes.Equal(e.Line, lines[i]) || !bytes.Equal(plain[e.Offset:e.Offset+len(e.Line)], lines[i]) {
				t.Fatalf("entry %d: request %d, %v, %d bytes, %v", k, e.Index, e.OK, len(e.Line), err)
			}
			k++
		}
		g, order = append(g, group), order[take:]
	}
	if formats[formatPacked] == 0 || formats[formatPackedZstd] == 0 {
		t.Errorf("formats %v", formats)
	}
	for _, few := range []int{n, 20} { // with the second, everything has room in memory
		if few < n {
			g = groups{p.Pack(AppendEntry(AppendEntry(nil, 2, true, lines[1]), 1, false, lines[2]))}
			lines = [][]byte{nil, lines[2], lines[1]}
		}
		record, err := Read(t.Context(), g, 1, len(lines))
		if err != nil {
			t.Fatal(err)
		}
		defer record.Close()
		for i, want := range lines {
			if record.Has(i) != (want != nil) {
				t.Fatalf("request %d: recorded %v", i, record.Has(i))
			}
			if want == nil {
				continue
			}
			if line, _, err := record.Line(t.Context(), i); err != nil || !bytes.Equal(line, want) {
				t.Fatalf("request %d: %d bytes, want %d; %v", i, len(line), len(want), err)
			}
		}
	}
}

// Groups as they were written once are read for ever.
func TestFormats(t *testing.T) {
	u := NewUnpacker()
	defer u.Close()
	const line = `{"v":[-0.12345678,1e-05, 2.5]}` + "\n"
	for _, test := range []struct {
		name, group string
		want        []string
	}{
		{"plain", "00050102610a", []string{"a\n"}},
		{"zstd", "0128b52ffd04007d000040050179616263200a015407022af1095cb17d", []string{strings.Repeat("abc ", 30) + "\n"}},
		{"packed", "02050102610a8f4e021e0000001f087b2276223a5b2d30080000001e325476c8f10dc50720322e355d7d0a", []string{"a\n", line}},
		{"packed, zstd", "0328b52ffd0400850100640200031e0000001f087b2276223a5b2d30080000001e325476c8f10dc50720322e355d7d0a" +
			"01020204209620eaa827cb7da1d9", []string{line, line, line}},
	} {
		group, err := hex.DecodeString(test.group)
		if err != nil {
			t.Fatal(err)
		}
		data, err := u.Unpack(group)
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		var got []string
		for e, err := range Entries(data) {
			if err != nil {
				t.Fatalf("%s: %v", test.name, err)
			}
			got = append(got, string(e.Line))
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

// A damaged line is an error, and what it takes is in proportion to what there is.
func FuzzUnpacked(f *testing.F) {
	f.Add(appendPacked(nil, embedding(rand.New(rand.NewPCG(1, 2)), 20, ",")))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0x0f, 0})
	f.Fuzz(func(t *testing.T, packed []byte) {
		line, err := appendUnpacked(nil, packed)
		if err != nil && !errors.Is(err, errDamaged) {
			t.Errorf("error %v", err)
		}
		if len(line) > 2*len(packed) {
			t.Errorf("%d bytes came of %d", len(line), len(packed))
		}
	})
}

// What lines take on their way to the journal, and back.
func BenchmarkEmbeddings(b *testing.B) {
	r := rand.New(rand.NewPCG(3, 4))
	var lines [][]byte
	for range 7 {
		lines = append(lines, embedding(r, 3072, ","))
	}
	benchmark(b, lines)
}

func BenchmarkCompletions(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	words := strings.Fields("the answer to this question depends on what you mean by it and there are several ways of looking at that")
	var lines [][]byte
	for range 400 {
		var line []byte
		for len(line) < 600 {
			line = append(append(line, words[r.IntN(len(words))]...), ' ')
		}
		lines = append(lines, append(line, '\n'))
	}
	benchmark(b, lines)
}

func benchmark(b *testing.B, lines [][]byte) {
	p := NewPacker(256 << 10)
	defer p.Close()
	size := 0
	for _, line := range lines {
		size += len(line)
	}
	var data []byte
	fill := func() {
		data = data[:0]
		for i, line := range lines {
			data = AppendEntry(data, i, true, line)
		}
	}
	b.Run("pack", func(b *testing.B) {
		b.SetBytes(int64(size))
		var group []byte
		for b.Loop() {
			fill()
			group = p.Pack(data)
		}
		b.ReportMetric(float64(len(group))/float64(size), "packed/line")
	})
	b.Run("read", func(b *testing.B) {
		b.SetBytes(int64(size))
		fill()
		g := groups{p.Pack(data)}
		for b.Loop() {
			r, err := Read(b.Context(), g, 1, len(lines))
			if err != nil {
				b.Fatal(err)
			}
			for i := range lines {
				if _, _, err := r.Line(b.Context(), i); err != nil {
					b.Fatal(err)
				}
			}
			r.Close()
		}
	})
}
