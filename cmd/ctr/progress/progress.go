// Package progress shows how a transfer goes: on a terminal a tree that is drawn
// again in place, with a bar and a rate for each layer; elsewhere a plain line
// for each step.
//
// There is one goroutine at work at a time: Update and Close may not be called
// concurrently.
package progress

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"berth/cmd/ctr/output"
	"berth/internal/transfer/report"

	"github.com/containerd/containerd/api/types/transfer"
	"golang.org/x/term"
)

// frame is the shortest time between two drawings on a terminal.
const frame = 80 * time.Millisecond

// Display shows one transfer. Make it with New, feed it with Update, end it with
// Close.
type Display struct {
	w        io.Writer
	fd       int // of the terminal, -1 without one
	start    time.Time
	drawn    time.Time
	lines    int // on the terminal, to be overwritten
	status   string
	nodes    map[string]*node
	roots    []*node
	now      func() time.Time
	finished bool
}

// node is a thing that is transferred: an image, a manifest, a layer.
type node struct {
	name     string
	event    string
	done     int64
	total    int64
	started  time.Time
	last     time.Time
	children []*node
	child    bool
}

// New shows on out, in place if that is a terminal.
func New(out *os.File) *Display {
	d := &Display{w: out, fd: -1, start: time.Now(), nodes: map[string]*node{}, now: time.Now}
	if term.IsTerminal(int(out.Fd())) {
		d.fd = int(out.Fd())
	}
	return d
}

// Update takes a report. One without a name is about the whole; if it has figures,
// they are those of the archive that is written.
func (d *Display) Update(p *transfer.Progress) {
	name := p.Name
	if name == "" && p.Total > 0 {
		name = report.Archive
	}
	if name == "" {
		d.status = p.Event
		if d.fd < 0 {
			fmt.Fprintln(d.w, p.Event)
		}
		return
	}
	n := d.nodes[name]
	changed := n == nil || n.event != p.Event
	if n == nil {
		n = &node{name: name}
		d.nodes[name] = n
		d.roots = append(d.roots, n)
	}
	d.place(n, p.Parents)
	if n.started.IsZero() && isMoving(p.Event) && p.Event != "extracting" {
		n.started = d.now()
	}
	n.event, n.done, n.last = p.Event, p.Progress, d.now()
	n.total = max(n.total, p.Total)
	switch {
	case d.fd < 0:
		if changed {
			d.line(n)
		}
	case d.now().Sub(d.drawn) >= frame:
		d.draw()
	}
}

// place moves n below its parents when they are known.
func (d *Display) place(n *node, parents []string) {
	if n.child {
		return
	}
	for _, name := range parents {
		parent := d.nodes[name]
		if parent == nil || parent == n || slices.Contains(parent.children, n) {
			continue
		}
		parent.children = append(parent.children, n)
		n.child = true
	}
	if n.child {
		d.roots = slices.DeleteFunc(d.roots, func(r *node) bool { return r == n })
	}
}

// Close shows the final state. failed leaves out the summary.
func (d *Display) Close(failed bool) {
	if d.finished {
		return
	}
	d.finished = true
	if d.fd >= 0 {
		if len(d.nodes) > 0 {
			d.draw()
		}
		return
	}
	if failed {
		return
	}
	if total := d.sum(); total == 0 {
		fmt.Fprintf(d.w, "done in %.1fs\n", d.elapsed().Seconds())
	} else {
		fmt.Fprintf(d.w, "done: %s in %.1fs (%s/s)\n", output.Size(total), d.elapsed().Seconds(), output.Size(d.rate(total)))
	}
}

func (d *Display) elapsed() time.Duration { return d.now().Sub(d.start) }

func (d *Display) rate(total int64) int64 {
	if s := d.elapsed().Seconds(); s > 0 {
		return int64(float64(total) / s)
	}
	return 0
}

// isMoving tells of an event whether its figures grow.
func isMoving(event string) bool {
	switch event {
	case "downloading", "uploading", "importing", "exporting", "converting", "extracting":
		return true
	}
	return false
}

// sum of the bytes that were moved, each thing once.
func (d *Display) sum() (total int64) {
	if n := d.nodes[report.Archive]; n != nil {
		return n.done // the others are parts of it
	}
	for _, n := range d.nodes {
		total += n.done
	}
	return total
}

// line is what is printed of a node that changed its state, without a terminal.
func (d *Display) line(n *node) {
	size := ""
	if s := max(n.total, n.done); s > 0 {
		size = " " + output.Size(s)
	}
	fmt.Fprintf(d.w, "%s: %s%s\n", short(n.name), n.event, size)
}

// draw puts the tree where the last one was.
func (d *Display) draw() {
	d.drawn = d.now()
	width, height, err := term.GetSize(d.fd)
	if err != nil || width <= 0 {
		width, height = 80, 24
	}
	l := layout{}
	for _, n := range d.roots {
		l.measure(n, 0)
	}
	l.bar = min(maxBar, width-l.name-eventWidth-figuresWidth-5)
	var rows []string
	for _, n := range d.roots {
		rows = l.rows(rows, n, "", "")
	}
	total := d.sum()
	sum := fmt.Sprintf("  elapsed: %.1fs  total: %s (%s/s)", d.elapsed().Seconds(), output.Size(total), output.Size(d.rate(total)))
	rows = append(rows, clip(d.status, max(0, width-len(sum)))+sum)
	if len(rows) >= height { // what scrolled away cannot be overwritten
		rows = rows[len(rows)-height+1:]
	}
	var out bytes.Buffer
	if d.lines > 0 {
		fmt.Fprintf(&out, "\x1b[%dA", d.lines)
	}
	for _, row := range rows {
		fmt.Fprintf(&out, "\r\x1b[2K%s\n", clip(row, width))
	}
	out.WriteString("\x1b[J")
	d.lines = len(rows)
	d.w.Write(out.Bytes())
}

// Columns of a row. The figures are what people look for: where a terminal is
// narrow the bar shrinks, and goes, before they do.
const (
	maxName      = 44
	eventWidth   = 11 // "downloading"
	figuresWidth = 31 // "100.0 MiB/100.0 MiB 100.0 MiB/s"
	maxBar       = 30
	minBar       = 4
)

// layout is how wide the columns of one drawing are.
type layout struct{ name, bar int }

// measure makes room for the names below a node. The node on top, an image, has
// no figures and may run over.
func (l *layout) measure(n *node, depth int) {
	if depth > 0 {
		l.name = max(l.name, min(maxName, 3*depth+len([]rune(short(n.name)))))
	}
	for _, c := range n.children {
		l.measure(c, depth+1)
	}
}

func (l *layout) rows(rows []string, n *node, first, next string) []string {
	row := first + short(n.name)
	if n.child {
		row = clip(row, l.name)
	}
	row = fmt.Sprintf("%-*s %-*s", l.name, row, eventWidth, n.event)
	switch {
	case isMoving(n.event):
		row += l.gauge(n.done, n.total)
		if n.total > 0 {
			row += " " + output.Size(n.done) + "/" + output.Size(n.total)
		} else if n.done > 0 {
			row += " " + output.Size(n.done)
		}
		if s := n.last.Sub(n.started).Seconds(); !n.started.IsZero() && s > 0.1 {
			row += fmt.Sprintf(" %s/s", output.Size(int64(float64(n.done)/s)))
		}
	case n.event == "complete" || n.event == "extracted" || n.event == "already exists":
		row += l.gauge(1, 1)
		if n.total > 0 {
			row += " " + output.Size(n.total)
		}
	}
	rows = append(rows, row)
	for i, c := range n.children {
		branch, trunk := "├──", "│  "
		if i == len(n.children)-1 {
			branch, trunk = "└──", "   "
		}
		rows = l.rows(rows, c, next+branch, next+trunk)
	}
	return rows
}

// gauge is a bar, if there is room for one.
func (l *layout) gauge(done, total int64) string {
	if l.bar < minBar {
		return ""
	}
	n := 0
	if total > 0 {
		n = int(min(done, total) * int64(l.bar) / total)
	}
	return " |" + strings.Repeat("+", n) + strings.Repeat("-", l.bar-n) + "|"
}

// short writes layer-sha256:0123… as layer (0123456789ab).
func short(name string) string {
	kind, hex, ok := strings.Cut(name, "-sha256:")
	if !ok || len(hex) < 12 {
		return name
	}
	return kind + " (" + hex[:12] + ")"
}

// clip cuts s to a number of characters.
func clip(s string, width int) string {
	r := []rune(s)
	if len(r) <= width {
		return s
	}
	return string(r[:max(0, width-1)]) + "…"
}
