package progress

import (
	"io"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// A Bar is the [Printer] for a person at a terminal: a bar with numbers below it, redrawn in
// place. What stays on the screen at the end is the last frame and the summary.
//
// The terminal belongs to mpb's goroutine; Bar only hands it frames and messages.
type Bar struct {
	w     io.Writer
	color bool
	now   func() time.Time

	screen *mpb.Progress
	row    *mpb.Bar
	close  sync.Once
	frame  []string // being drawn; owned by the redraw

	mu      sync.Mutex // guards what follows
	tracker tracker
}

var _ Printer = (*Bar)(nil)

// NewBar draws on w, which should be a terminal of a known size. With color false the bar is
// plain text, as NO_COLOR asks for. The Bar must be closed.
func NewBar(w io.Writer, color bool) *Bar {
	return newBar(w, color, time.Now)
}

func newBar(w io.Writer, color bool, now func() time.Time, opts ...mpb.ContainerOption) *Bar {
	b := &Bar{w: w, color: color, now: now}
	b.tracker.started = now()
	b.screen = mpb.New(append([]mpb.ContainerOption{
		mpb.WithOutput(w),
		mpb.WithRefreshRate(200 * time.Millisecond),
	}, opts...)...)
	// A total of 0 keeps mpb from declaring the bar complete on its own. Its filler is the
	// first line of the frame, what extends it the others.
	b.row = b.screen.MustAdd(0, mpb.BarFillerFunc(b.first), mpb.BarFillerTrim(),
		mpb.BarExtender(mpb.BarFillerFunc(b.others), false))
	return b
}

// Update implements [Printer].
func (b *Bar) Update(s Snapshot) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tracker.update(s, b.now())
}

// home begins what is drawn. The terminal may have echoed a key, such as ^C, behind mpb's back: then
// the cursor is not where mpb left it.
const home = "\r"

// Message implements [Printer].
func (b *Bar) Message(text string) {
	text += "\n"
	if _, err := io.WriteString(b.screen, home+text); err != nil { // closed: nothing to draw above
		io.WriteString(b.w, text)
	}
}

// Close implements [Printer].
func (b *Bar) Close() {
	b.close.Do(func() {
		b.row.SetTotal(-1, true)
		b.screen.Wait()
	})
}

// Summary implements [Printer].
func (b *Bar) Summary(s Summary) {
	b.Close()
	io.WriteString(b.w, s.text())
}

// first draws a new frame and writes its first line. mpb calls it, and then others, once per
// redraw and never at the same time.
func (b *Bar) first(w io.Writer, st decor.Statistics) error {
	b.mu.Lock()
	// The last column stays free: some terminals wrap as soon as it is written.
	b.frame = b.tracker.view(b.now()).frame(st.AvailableWidth-1, b.color)
	b.mu.Unlock()
	_, err := io.WriteString(w, home+b.frame[0])
	return err
}

// others writes the lines of the frame below the first.
func (b *Bar) others(w io.Writer, _ decor.Statistics) error {
	for _, line := range b.frame[1:] {
		if _, err := io.WriteString(w, line+"\n"); err != nil {
			return err
		}
	}
	return nil
}
