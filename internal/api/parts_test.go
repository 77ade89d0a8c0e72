package api

import (
	"bytes"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

// formOfText is a request with this body. Its boundary is B.
func formOfText(body io.Reader) *http.Request {
	r, _ := http.NewRequest("POST", "/", body)
	r.Header.Set("Content-Type", "multipart/form-data; boundary=B")
	return r
}

// readWhole reads a form as package mime/multipart does.
func readWhole(body io.Reader) (read []string) {
	m, err := formOfText(body).MultipartReader()
	for err == nil {
		var p *multipart.Part
		if p, err = m.NextPart(); err != nil {
			break
		}
		var text []byte
		text, err = io.ReadAll(p)
		read = append(read, fmt.Sprintf("%s: %q", p.FormName(), text))
	}
	return outcome(read, err)
}

// readParts reads a form as uploads do, with every part by copyTo.
func readParts(body io.Reader) (read []string) {
	m, err := newParts(formOfText(body))
	for err == nil {
		var p *multipart.Part
		if p, err = m.next(); err != nil {
			break
		}
		var text bytes.Buffer
		var size int64
		size, err = m.copyTo(&text, p, 1<<40, func(int) {}, func(err error) error { return err })
		if size != int64(text.Len()) {
			return append(read, "a wrong size")
		}
		read = append(read, fmt.Sprintf("%s: %q", p.FormName(), text.Bytes()))
	}
	return outcome(read, err)
}

// outcome is what was read if it was read to its end; else it does not matter.
func outcome(read []string, err error) []string {
	if err != io.EOF {
		return []string{"broken"}
	}
	return read
}

func file(text string) string {
	return "--B\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n" + text
}

// oddForms are forms of which it is not obvious what they hold.
func oddForms() []string {
	field := "--B\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n"
	end := "\r\n--B--\r\n"
	long := strings.Repeat("x", formBuffer)
	forms := []string{
		file("text") + end, field + file("text") + end, file("text") + "\r\n" + field + "--B--\r\n",
		file("") + end, file("") + "--B--\r\n", file("a\r\n--B") + end, file("a\r\n--Bx\r\nb") + end, file("a\r\n--B-x") + end,
		file("a\r\n--B x") + end, file("a\r\n--B\t\r\n") + end, file("a\r\n--B\n") + end, file("a\n--B--") + end,
		file("--B") + end, file("--B\r\n") + end, file("--Bx") + end, file("\r\n--B\r\n\r\n") + end,
		file("a\r\n\r\n--B--") + end, file("a\r\r\n--B--"), file("a\r\n--B--"), file("a\r\n--B-"), file("a\r\n--B"), file("a\r\n--"), file("a\r\n"), file("a"), file(""),
		"preamble\r\n" + file("a") + end, "preamble\n" + file("a") + end, file("a") + end + "epilogue",
		strings.ReplaceAll(field+file("a\r\nb")+end, "\r\n", "\n"),
		strings.Replace(file("a")+end, "--B\r\n", "--B\n", 1), strings.Replace(file("a")+end, "--B\r\n", "--B  \r\n", 1),
		strings.Replace(file("a\nb")+end, "\"f\"\r\n", "\"f\"\n", 1),
		strings.Replace(file("=41=\r\nb")+end, "\r\n\r\n", "\r\nContent-Transfer-Encoding: Quoted-Printable\r\n\r\n", 1),
		strings.Replace(file("a")+end, "\r\n\r\n", "\r\n : x\r\n\r\n", 1), strings.Replace(file("a")+end, "\r\n\r\n", "\r\n\r", 1),
		"", "--B--\r\n", "--B--", "--B\r\n", "--B", "x",
	}
	for i := range 12 { // a delimiter, and what is none, on both sides of where the buffer ends
		forms = append(forms, file(long[:len(long)-i])+end, file(long[i:]+"\r\n--Bx"+long)+end, file(long+long[:len(long)-i])+end)
	}
	return forms
}

// TestPartsAreParts reads odd forms as package mime/multipart does.
func TestPartsAreParts(t *testing.T) {
	for _, form := range oddForms() {
		want := readWhole(strings.NewReader(form))
		for name, in := range map[string]io.Reader{
			"whole": strings.NewReader(form), "bytes": iotest.OneByteReader(strings.NewReader(form)),
			"with the end": iotest.DataErrReader(strings.NewReader(form)),
		} {
			if got := readParts(in); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: %.200q\n got %.200q\nwant %.200q", name, form, got, want)
			}
		}
	}
}

// FuzzParts reads any form as package mime/multipart does.
func FuzzParts(f *testing.F) {
	for _, form := range oddForms() {
		if len(form) < 1000 {
			f.Add(form)
		}
	}
	f.Fuzz(func(t *testing.T, form string) {
		want := readWhole(strings.NewReader(form))
		for _, in := range []io.Reader{strings.NewReader(form), iotest.HalfReader(strings.NewReader(form))} {
			if got := readParts(in); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%q\n got %q\nwant %q", form, got, want)
			}
		}
	})
}

// BenchmarkParts reads a file of an upload.
func BenchmarkParts(b *testing.B) {
	line := strings.Repeat("x", 300) + "\n"
	form := file(strings.Repeat(line, 100_000)) + "\r\n--B--\r\n"
	b.SetBytes(int64(len(form)))
	for b.Loop() {
		m, err := newParts(formOfText(strings.NewReader(form)))
		if err != nil {
			b.Fatal(err)
		}
		p, err := m.next()
		if err == nil {
			_, err = m.copyTo(io.Discard, p, 1<<40, func(int) {}, func(err error) error { return err })
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPartsOfStandardLibrary is the same without us.
func BenchmarkPartsOfStandardLibrary(b *testing.B) {
	line := strings.Repeat("x", 300) + "\n"
	form := file(strings.Repeat(line, 100_000)) + "\r\n--B--\r\n"
	b.SetBytes(int64(len(form)))
	for b.Loop() {
		m, err := formOfText(strings.NewReader(form)).MultipartReader()
		if err != nil {
			b.Fatal(err)
		}
		p, err := m.NextPart()
		if err == nil {
			_, err = io.Copy(io.Discard, p)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}
