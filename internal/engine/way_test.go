package engine_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"offpeak/internal/batch"
	"offpeak/internal/sim"
	"offpeak/internal/upstream"
)

// TestWholeWay runs a batch from its creation to its files.
func TestWholeWay(t *testing.T) {
	bubble(t, func(b *bench) {
		b.upstream(sim.Config{Timing: sim.Timing{Latency: time.Second, Jitter: 0.5}}, upstream.Config{})
		text := chat(300)
		p := b.start(small(70))
		id := b.run(text)
		p.Wake()
		b.want(b.ends(id), batch.Completed, 300, 300, 0)
		b.wantCalls(text, 1)
		p.drain()
	})
}

// TestRealNetwork runs a batch over sockets, at an upstream that is killed and started again.
func TestRealNetwork(t *testing.T) {
	if *clustered {
		prepare(t)
	}
	b := newBench(t)
	config := sim.Config{CountCalls: true, Timing: sim.Timing{Latency: 20 * time.Millisecond, Jitter: 0.9}}
	first, err := sim.Start(config, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	u, err := upstream.New(upstream.Config{URL: first.URL(), MaxInFlight: 16})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	b.truth = sim.New(sim.Config{})
	b.ups = append(b.ups, &up{Server: first.Server, Upstream: u})
	p := b.start(small(60))
	id := b.run(chat(300, "m", "n"))
	b.recorded(id, 50)
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	time.Sleep(200 * time.Millisecond)
	second, err := sim.Start(config, first.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	b.ups = append(b.ups, &up{Server: second.Server})
	b.want(b.ends(id), batch.Completed, 300, 300, 0)
	p.drain()
}

// TestOddInputs runs inputs of every shape that a file may have.
func TestOddInputs(t *testing.T) {
	for _, test := range []struct {
		name string
		text string
		part int // bytes of the parts that the file has; 0: one
	}{
		{"one line", line("a", "m", "x"), 0},
		{"no line break at the end", strings.TrimSuffix(line("a", "m", "x")+line("b", "m", "y"), "\n"), 0},
		{"carriage returns", strings.ReplaceAll(line("a", "m", "x")+line("b", "m", "y"), "\n", "\r\n"), 0},
		{"blank lines", "\n \n" + line("a", "m", "x") + "\n\t\n\r\n" + line("b", "m", "y") + strings.Repeat("\n", 20) + line("c", "m", "z") + "  \n\n", 0},
		{"parts cut anywhere", "\n" + string(chat(20, "m", "n")), 7},
		{"two models", string(chat(30, "m", "n")), 0},
		{"a model a line", string(chat(12, "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l")), 0},
		{"equal bodies", line("a", "m", "x") + line("b", "m", "x") + line("c", "m", "x"), 0},
		{"odd ids", line("\u2028\"\\\n\x01", "m", "x") + line("a", "m", "y") + line("🦉", "m", "z"), 0},
		{"long lines", line("a", "m", strings.Repeat("long ", 3000)) + line("b", "m", "x") + line("c", "m", strings.Repeat("wrong ", 3000)), 4096},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				b.upstream(sim.Config{}, upstream.Config{})
				p := b.start(small(7))
				id := b.create(b.upload([]byte(test.text), test.part), time.Hour)
				n := int64(strings.Count(test.text, "custom_id"))
				b.want(b.ends(id), batch.Completed, n, n, 0)
				p.drain()
			})
		})
	}
}

// TestRefusedInputs wants batches failed before anything is sent.
func TestRefusedInputs(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       []batch.LineError // without messages
	}{
		{"empty", "", []batch.LineError{{Code: "empty_file"}}},
		{"blank", "\n \r\n\n", []batch.LineError{{Code: "empty_file"}}},
		{"broken", line("a", "m", "x") + "{\n\nno\n" + line("a", "m", "y"), []batch.LineError{
			{Code: "invalid_json_line", Line: 2}, {Code: "invalid_json_line", Line: 4}, {Code: "duplicate_custom_id", Line: 5},
		}},
		{"unknown model", line("a", "known", "x") + line("b", "other", "x"), []batch.LineError{{Code: "model_not_found", Line: 2}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			bubble(t, func(b *bench) {
				u := b.upstream(sim.Config{Models: []sim.Model{{ID: "known"}, {ID: "m"}}}, upstream.Config{})
				p := b.start()
				x := b.ends(b.run([]byte(test.text)))
				b.want(x, batch.Failed, 0, 0, 0)
				if len(x.Errors) != len(test.want) {
					b.Fatalf("errors %+v, want %+v", x.Errors, test.want)
				}
				for i, e := range x.Errors {
					if e.Code != test.want[i].Code || e.Line != test.want[i].Line {
						b.Errorf("error %+v, want %+v", e, test.want[i])
					}
				}
				if calls := u.Calls(); calls.Calls != 0 {
					b.Errorf("%d calls were made", calls.Calls)
				}
				p.drain()
			})
		})
	}
}

// TestManyErrors reports a hundred errors and no more, however many there are.
func TestManyErrors(t *testing.T) {
	bubble(t, func(b *bench) {
		b.upstream(sim.Config{}, upstream.Config{})
		p := b.start()
		x := b.ends(b.run(bytes.Repeat([]byte("nonsense\n"), 500)))
		if len(x.Errors) != batch.MaxLineErrors || x.Errors[99].Line != 100 {
			b.Errorf("%d errors, the last %+v", len(x.Errors), x.Errors[len(x.Errors)-1])
		}
		p.drain()
	})
}
