package progress

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"berth/internal/transfer/report"

	"github.com/containerd/containerd/api/types/transfer"
)

func testDisplay(fd int) (*Display, *bytes.Buffer) {
	var out bytes.Buffer
	now := time.Unix(100, 0)
	return &Display{w: &out, fd: fd, start: now, nodes: map[string]*node{}, now: func() time.Time {
		now = now.Add(100 * time.Millisecond)
		return now
	}}, &out
}

var digest = strings.Repeat("0123456789abcdef", 4)

func feed(d *Display) {
	d.Update(&transfer.Progress{Event: "Pulling"})
	d.Update(&transfer.Progress{Name: "image", Event: "fetching"})
	d.Update(&transfer.Progress{Name: "manifest-sha256:" + digest, Event: "waiting", Parents: []string{"image"}, Total: 10})
	for _, done := range []int64{0, 512, 1024} {
		d.Update(&transfer.Progress{Name: "layer-sha256:" + digest, Event: "downloading", Parents: []string{"manifest-sha256:" + digest}, Progress: done, Total: 1024})
	}
	d.Update(&transfer.Progress{Name: "layer-sha256:" + digest, Event: "extracted", Progress: 1024, Total: 1024})
	d.Update(&transfer.Progress{Event: "Completed"})
	d.Close(false)
}

func TestPlainLines(t *testing.T) {
	d, out := testDisplay(-1)
	feed(d)
	want := "Pulling\nimage: fetching\nmanifest (0123456789ab): waiting 10.0 B\nlayer (0123456789ab): downloading 1.0 KiB\nlayer (0123456789ab): extracted 1.0 KiB\nCompleted\ndone: 1.0 KiB in "
	if !strings.HasPrefix(out.String(), want) {
		t.Errorf("got %q\nwant %q", out.String(), want)
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Error("escape sequences without a terminal")
	}
}

func TestTreeIsDrawnInPlace(t *testing.T) {
	d, out := testDisplay(1 << 20) // no such descriptor: 80 columns
	feed(d)
	frames := strings.Split(out.String(), "\x1b[J")
	last := frames[len(frames)-2]
	for _, want := range []string{"image", "└──manifest (0123456789ab)", "   └──layer (0123456789ab)", strings.Repeat("+", 7) + "| 1.0 KiB", "total: 1.0 KiB"} {
		if !strings.Contains(last, want) {
			t.Errorf("last frame lacks %q:\n%s", want, last)
		}
	}
	if !strings.HasPrefix(last, "\x1b[4A") {
		t.Errorf("last frame does not go back over the 4 lines before it: %q", last[:10])
	}
	for line := range strings.Lines(last) {
		if n := len([]rune(strings.TrimSpace(strings.ReplaceAll(line, "\r\x1b[2K", "")))); n > 80 {
			t.Errorf("line of %d characters: %q", n, line)
		}
	}
}

// What is read from an archive is not counted again when it is unpacked.
func TestArchive(t *testing.T) {
	d, out := testDisplay(-1)
	d.Update(&transfer.Progress{Name: report.Archive, Event: "importing"})
	d.Update(&transfer.Progress{Name: report.Archive, Event: "importing", Progress: 1000})
	d.Update(&transfer.Progress{Name: report.Archive, Event: "complete", Progress: 2048})
	d.Update(&transfer.Progress{Name: "layer-sha256:" + digest, Event: "extracting", Progress: 1024, Total: 1024})
	d.Close(false)
	if want := "archive: importing\narchive: complete 2.0 KiB\nlayer (0123456789ab): extracting 1.0 KiB\ndone: 2.0 KiB in "; !strings.HasPrefix(out.String(), want) {
		t.Errorf("got %q\nwant %q", out.String(), want)
	}
	d, out = testDisplay(-1)
	d.Update(&transfer.Progress{Event: "Exporting"})
	d.Update(&transfer.Progress{Event: "exporting", Progress: 1000, Total: 2048})
	d.Update(&transfer.Progress{Event: "complete", Progress: 2048, Total: 2048})
	d.Close(false)
	if want := "Exporting\narchive: exporting 2.0 KiB\narchive: complete 2.0 KiB\ndone: 2.0 KiB in "; !strings.HasPrefix(out.String(), want) {
		t.Errorf("got %q\nwant %q", out.String(), want)
	}
	d, out = testDisplay(-1)
	d.Close(false)
	if !strings.HasPrefix(out.String(), "done in ") {
		t.Errorf("of nothing: %q", out.String())
	}
}

// Reports come from a daemon: a cycle among parents must not hang the display.
func TestParentsThatFormACycle(t *testing.T) {
	d, _ := testDisplay(1 << 20)
	d.Update(&transfer.Progress{Name: "a", Event: "x", Parents: []string{"a", "b"}})
	d.Update(&transfer.Progress{Name: "b", Event: "x", Parents: []string{"a"}})
	d.Update(&transfer.Progress{Name: "a", Event: "x", Parents: []string{"b"}})
	d.Close(false)
}
