package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"
)

// upload compares uploading with writing and syncing the same bytes.
func upload(ctx context.Context, e *env) error {
	up, err := newStub(0, completions(64, 90)...)
	if err != nil {
		return err
	}
	defer up.close()
	s, err := e.serve(ctx, serving{upstream: up.url()})
	if err != nil {
		return err
	}
	defer s.stop()
	in, err := e.chats(25_000, 335)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(in.path)
	if err != nil {
		return err
	}
	sizes := []int64{200 << 20}
	if e.full {
		sizes = append(sizes, 2<<30)
	}
	for _, size := range sizes {
		var ours, writes []float64
		err := e.inTurn(func() error {
			u, err := e.reference(ctx, "write", e.path("written"), strconv.FormatInt(size, 10))
			writes = append(writes, megabytes(size)/u.wall.Seconds())
			os.Remove(e.path("written"))
			return err
		}, func() error {
			start := time.Now()
			file, err := s.uploadFrom(ctx, &again{text: text}, size)
			if err != nil {
				return err
			}
			ours = append(ours, megabytes(size)/time.Since(start).Seconds())
			resp, err := s.do(ctx, "DELETE", "/v1/files/"+file, "", nil, 0)
			return decode(resp, err, nil)
		})
		if err != nil {
			return err
		}
		our, reference := median(ours), median(writes)
		e.report(figure{Case: fmt.Sprintf("%s MiB", number(float64(size>>20))), Unit: "MB/s", Measured: our,
			Reference: reference, Against: "write and fsync", Ratio: our / reference}, ratioOf(0.7, reasonUpload))
	}
	return nil
}

const reasonUpload = "the bytes are copied into the socket by the client and out of it by the server, on the two cores that writing them needs one of"

func megabytes(n int64) float64 { return float64(n) / 1e6 }

// again reads a text again and again.
type again struct {
	text []byte
	at   int
}

// Read implements io.Reader.
func (a *again) Read(p []byte) (int, error) {
	n := copy(p, a.text[a.at:])
	a.at = (a.at + n) % len(a.text)
	return n, nil
}

// WriteTo implements io.WriterTo, without a copy. It never ends by itself.
func (a *again) WriteTo(w io.Writer) (n int64, err error) {
	for err == nil {
		var m int64
		m, err = io.Copy(w, bytes.NewReader(a.text))
		n += m
	}
	return n, err
}

// download compares fetching an output with cat into a socket.
func download(ctx context.Context, e *env) error {
	// Answers of 25 KB, so that making the output does not take long.
	const each = 25_000
	in, err := e.chats(e.size(10_000, 40_000), 335)
	if err != nil {
		return err
	}
	up, err := newStub(0, completions(64, each)...)
	if err != nil {
		return err
	}
	defer up.close()
	s, err := e.serve(ctx, serving{upstream: up.url(), inFlight: 64})
	if err != nil {
		return err
	}
	defer s.stop()
	file, err := s.upload(ctx, in.path)
	if err != nil {
		return err
	}
	up.expect(in.lines)
	id, err := s.create(ctx, file, in.endpoint)
	if err != nil {
		return err
	}
	b, err := s.await(ctx, id, "completed", 100*time.Millisecond)
	if err != nil {
		return err
	}
	same, err := os.Create(e.path("same"))
	if err != nil {
		return err
	}
	defer same.Close()
	resp, err := s.do(ctx, "GET", "/v1/files/"+b.Output+"/content", "", nil, 0)
	if err != nil {
		return err
	}
	size, err := io.Copy(same, resp.Body)
	resp.Body.Close()
	if err != nil {
		return err
	}
	var ours, cats []float64
	err = e.inTurn(func() error {
		took, err := e.cat(ctx, same.Name(), size)
		cats = append(cats, megabytes(size)/took.Seconds())
		return err
	}, func() error {
		start := time.Now()
		n, err := s.content(ctx, b.Output)
		if err == nil && n != size {
			err = fmt.Errorf("%d bytes came of %d", n, size)
		}
		ours = append(ours, megabytes(size)/time.Since(start).Seconds())
		return err
	})
	if err != nil {
		return err
	}
	our, reference := median(ours), median(cats)
	e.report(figure{Case: fmt.Sprintf("%s MB of output", number(megabytes(size))), Unit: "MB/s", Measured: our,
		Reference: reference, Against: "cat", Ratio: our / reference}, ratioOf(0.7, ""))
	return nil
}

// cat reads a file as cat gives it to a socket.
func (e *env) cat(ctx context.Context, path string, size int64) (time.Duration, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	start := time.Now()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	from, err := l.Accept()
	if err != nil {
		return 0, err
	}
	defer from.Close()
	tcp, err := conn.(*net.TCPConn).File() // blocking, as a shell would give it
	if err != nil {
		return 0, err
	}
	c := command(ctx, "cat", path)
	c.Stdout = tcp
	err = c.Start()
	tcp.Close()
	conn.Close()
	if err != nil {
		return 0, err
	}
	n, err := io.Copy(io.Discard, from)
	took := time.Since(start)
	if werr := c.Wait(); err == nil {
		err = werr
	}
	if err == nil && n != size {
		err = fmt.Errorf("cat gave %d bytes of %d", n, size)
	}
	return took, err
}
