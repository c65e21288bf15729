package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
)

func TestCountersOfBothVersions(t *testing.T) {
	at := time.Unix(1, 0)
	want := counters{at: at, cpu: 3 * time.Second, memory: 70, limit: 1000, read: 5, write: 7, pids: 2}
	for name, m := range map[string]any{
		"v1": &v1.Metrics{
			CPU:    &v1.CPUStat{Usage: &v1.CPUUsage{Total: 3e9}},
			Memory: &v1.MemoryStat{Usage: &v1.MemoryEntry{Usage: 100, Limit: 1000}, TotalInactiveFile: 30},
			Pids:   &v1.PidsStat{Current: 2},
			Blkio: &v1.BlkIOStat{IoServiceBytesRecursive: []*v1.BlkIOEntry{
				{Op: "Read", Value: 2}, {Op: "Write", Value: 7}, {Op: "Read", Value: 3, Minor: 1}, {Op: "Total", Value: 12},
			}},
		},
		"v2": &v2.Metrics{
			CPU:    &v2.CPUStat{UsageUsec: 3e6},
			Memory: &v2.MemoryStat{Usage: 100, UsageLimit: 1000, InactiveFile: 30},
			Pids:   &v2.PidsStat{Current: 2},
			Io:     &v2.IOStat{Usage: []*v2.IOEntry{{Rbytes: 2, Wbytes: 7}, {Rbytes: 3}}},
		},
	} {
		if got, ok := countersOf(m, at); !ok || got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	if c, _ := countersOf(&v2.Metrics{Memory: &v2.MemoryStat{UsageLimit: 1<<64 - 1}}, at); c.limit != 0 {
		t.Errorf("no limit is shown as %d", c.limit)
	}
	if _, ok := countersOf(nil, at); ok {
		t.Error("counters of nothing")
	}
}

func TestRates(t *testing.T) {
	m, key, at := &monitor{}, topKey{"default", "a"}, time.Unix(100, 0)
	var v topView
	m.rates(&v, key, counters{at: at, cpu: time.Second, memory: 5, read: 100})
	if v.CPU != 0 || len(v.cpus) != 0 || v.Memory != 5 {
		t.Errorf("the first look: %+v", v)
	}
	m.before = map[topKey]counters{key: {at: at, cpu: time.Second, read: 100}}
	m.rates(&v, key, counters{at: at.Add(2 * time.Second), cpu: 4 * time.Second, read: 300, write: 10})
	if v.CPU != 150 || v.Read != 100 || v.Write != 5 || len(v.cpus) != 1 {
		t.Errorf("the second: %+v", v)
	}
	// A container of the same name that was made anew.
	v = topView{}
	m.rates(&v, key, counters{at: at.Add(3 * time.Second), cpu: time.Millisecond})
	if v.CPU != 0 || v.Read != 0 {
		t.Errorf("counters that went back: %+v", v)
	}
}

func TestSparkline(t *testing.T) {
	for _, tc := range []struct {
		values []float64
		width  int
		full   float64
		want   string
	}{
		{nil, 3, 100, "   "}, {[]float64{0, 50, 100}, 5, 100, "  ▁▅█"}, {[]float64{1, 2, 3, 4}, 2, 4, "▇█"},
		{[]float64{400}, 1, 100, "█"}, {[]float64{0, 0}, 2, 0, "▁▁"}, {[]float64{1}, 0, 1, ""},
	} {
		if got := sparkline(tc.values, tc.width, tc.full); got != tc.want {
			t.Errorf("%v in %d: %q, want %q", tc.values, tc.width, got, tc.want)
		}
	}
}

func TestDrawTopFits(t *testing.T) {
	var rows []topView
	for _, id := range []string{"a", "b", strings.Repeat("long", 20), "d", "e", "f"} {
		rows = append(rows, topView{ID: id, CPU: 12.5, Memory: 3 << 30, MemoryLimit: 4 << 30, cpus: []float64{1, 50}, memories: []float64{1 << 30, 3 << 30}})
	}
	for _, size := range [][2]int{{80, 24}, {40, 6}, {200, 50}, {1, 1}, {59, 24}} {
		screen := drawTop(rows, "name", nil, size[0], size[1])
		lines := bytes.Split(bytes.TrimSuffix(screen, []byte("\x1b[J")), []byte("\x1b[K\r\n"))
		if n := len(lines) - 1; n > max(size[1], 4) {
			t.Errorf("%v: %d lines", size, n)
		}
		for _, line := range lines {
			plain := strings.NewReplacer("\x1b[H", "", "\x1b[7m", "", "\x1b[27m", "").Replace(string(line))
			if n := utf8.RuneCountInString(plain); n > size[0] {
				t.Errorf("%v: a line of %d: %q", size, n, plain)
			}
		}
	}
}

func TestSeekTail(t *testing.T) {
	big := strings.Repeat("x", 100<<10) + "\n"
	for _, tc := range []struct {
		text string
		n    int
		want string
	}{
		{"a\nb\nc\n", 1, "c\n"}, {"a\nb\nc", 1, "c"}, {"a\nb\nc\n", 2, "b\nc\n"}, {"a\nb\n", 5, "a\nb\n"}, {"a\n", 0, ""}, {"", 3, ""},
		{"a\nb\n", -1, "a\nb\n"}, {"\n\n\n", 2, "\n\n"}, {big + big + "end\n", 2, big + "end\n"}, {big + big, 1, big},
	} {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, []byte(tc.text), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := seekTail(f, tc.n); err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		got.ReadFrom(f)
		f.Close()
		if got.String() != tc.want {
			t.Errorf("the last %d of %.20q: %.20q, want %.20q", tc.n, tc.text, got.String(), tc.want)
		}
	}
}

func TestLineTime(t *testing.T) {
	local := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	utc := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for line, want := range map[string]time.Time{
		"2026-01-02T03:04:05Z stdout F hello": utc, "2026-01-02T03:04:05.000000000Z x": utc, `time="2026-01-02T03:04:05Z" level=info`: utc,
		"time=2026-01-02T03:04:05Z level=INFO": utc, "[2026-01-02 03:04:05] x": local, "2026-01-02 03:04:05,123 INFO x": local, "2026/01/02 03:04:05 x": local,
		"2026-01-02T05:04:05+02:00 x": utc, "2026-01-02T03:04:05Z": utc,
	} {
		if got, ok := lineTime([]byte(line)); !ok || !got.Equal(want) {
			t.Errorf("%s: %v, %v", line, got, ok)
		}
	}
	for _, line := range []string{"", "hello", "2026", "12:00 x", "2026-13-02T03:04:05Z x"} {
		if got, ok := lineTime([]byte(line)); ok {
			t.Errorf("%q: %v", line, got)
		}
	}
}

// Lines arrive in pieces of any size.
func TestLogWriter(t *testing.T) {
	const text = "2026-01-01T00:00:00Z old\n  more of it\n2026-01-03T00:00:00Z new\n  more of it\n2026-01-01T00:00:00Z late\n"
	for size := 1; size < len(text); size++ {
		var out bytes.Buffer
		w := &logWriter{w: &out, since: time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)}
		for at := 0; at < len(text); at += size {
			if n, err := w.Write([]byte(text[at:min(at+size, len(text))])); err != nil || n != min(size, len(text)-at) {
				t.Fatal(n, err)
			}
		}
		if want := text[strings.Index(text, "2026-01-03"):]; out.String() != want || w.end() != nil {
			t.Fatalf("pieces of %d: %q", size, out.String())
		}
	}
	w := &logWriter{w: &bytes.Buffer{}, since: time.Now()}
	w.Write([]byte("no\ntimes\n"))
	if w.end() == nil {
		t.Error("lines without times: no error")
	}
}

func TestParseSince(t *testing.T) {
	now := time.Date(2026, 5, 6, 7, 8, 9, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"": {}, "10m": now.Add(-10 * time.Minute), "2026-01-02T03:04:05Z": time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), "2026-01-02": time.Date(2026, 1, 2, 0, 0, 0, 0, time.Local),
	} {
		if got, err := parseSince(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	if _, err := parseSince("yesterday", now); err == nil {
		t.Error("yesterday: no error")
	}
}

func FuzzLineTime(f *testing.F) {
	f.Add([]byte(`time="2026-01-02T03:04:05Z" x`))
	f.Add([]byte("[2026-01-02 03:04:05,1] x"))
	f.Fuzz(func(t *testing.T, line []byte) { lineTime(line) })
}
