package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"berth/cmd/ctr/output"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/console"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/urfave/cli/v3"
)

func topCommand() *cli.Command {
	return &cli.Command{
		Name: "top", Usage: "Show what running containers use", ArgsUsage: "[flags] [CONTAINER, ...]",
		Description: "CPU (100% is one processor), memory (without what can be dropped at any time), disk IO and processes of each task: live on a terminal, " +
			"with what was before as a curve; otherwise once, over one interval. Keys: c, m, i, p, n sort by CPU, memory, IO, processes, name; q ends.",
		Flags: []cli.Flag{
			allNamespacesFlag(),
			&cli.DurationFlag{Name: "interval", Aliases: []string{"i"}, Usage: "Time between two looks", Value: time.Second},
			&cli.BoolFlag{Name: "once", Usage: "Print one table and end, on a terminal, too"},
			&cli.StringFlag{Name: "sort", Usage: "Order: cpu, memory, io, pids or name", Value: "cpu"},
			formatFlag(),
		},
		Action: withSession(topAction),
	}
}

// topView is what a container used over an interval.
type topView struct {
	Namespace   string
	ID          string
	Status      string
	PID         uint32
	CPU         float64 // percent of one processor
	Memory      uint64  // bytes in use, file cache that is not active left out
	MemoryLimit uint64  // bytes, 0 for none
	Read        float64 // bytes a second, from disks
	Write       float64
	PIDs        uint64

	cpus, memories []float64 // before, for curves
}

// counters are what a cgroup counts.
type counters struct {
	at            time.Time
	cpu           time.Duration
	memory, limit uint64
	read, write   uint64
	pids          uint64
}

// countersOf reads the metrics of either cgroup version.
func countersOf(m any, at time.Time) (c counters, ok bool) {
	c.at = at
	switch d := m.(type) {
	case *v1.Metrics:
		c.cpu = time.Duration(d.GetCPU().GetUsage().GetTotal())
		c.memory, c.limit = without(d.GetMemory().GetUsage().GetUsage(), d.GetMemory().GetTotalInactiveFile()), d.GetMemory().GetUsage().GetLimit()
		for _, e := range d.GetBlkio().GetIoServiceBytesRecursive() {
			switch e.Op {
			case "Read", "read":
				c.read += e.Value
			case "Write", "write":
				c.write += e.Value
			}
		}
		c.pids = d.GetPids().GetCurrent()
	case *v2.Metrics:
		c.cpu = time.Duration(d.GetCPU().GetUsageUsec()) * time.Microsecond
		c.memory, c.limit = without(d.GetMemory().GetUsage(), d.GetMemory().GetInactiveFile()), d.GetMemory().GetUsageLimit()
		for _, e := range d.GetIo().GetUsage() {
			c.read += e.Rbytes
			c.write += e.Wbytes
		}
		c.pids = d.GetPids().GetCurrent()
	default:
		return c, false
	}
	if c.limit >= 1<<62 { // how both versions write "none"
		c.limit = 0
	}
	return c, true
}

func without(all, part uint64) uint64 {
	if part > all {
		return 0
	}
	return all - part
}

type topKey struct{ namespace, id string }

// monitor remembers what it saw the last time.
type monitor struct {
	s          *session
	namespaces []string // nil for all
	only       []string // IDs, nil for all
	before     map[topKey]counters
	history    map[topKey]*curve
}

// curve is the end of a series.
type curve struct{ cpu, memory []float64 }

const curveLength = 60

// look reads the counters of all running tasks. A container that has come since
// the last look has no rates yet.
func (m *monitor) look(ctx context.Context) ([]topView, error) {
	namespaces := m.namespaces
	if namespaces == nil {
		namespaces = namespaceNames(ctx, m.s)
	}
	now := map[topKey]counters{}
	var rows []topView
	for _, ns := range namespaces {
		views, err := m.lookAt(ctx, ns, now)
		if err != nil {
			return nil, err
		}
		rows = append(rows, views...)
	}
	m.before = now
	for key := range m.history {
		if _, ok := now[key]; !ok {
			delete(m.history, key)
		}
	}
	return rows, nil
}

func (m *monitor) lookAt(ctx context.Context, namespace string, now map[topKey]counters) ([]topView, error) {
	ctx = withNamespace(ctx, namespace)
	tasks := tasksapi.NewTasksClient(m.s)
	list, err := tasks.List(ctx, &tasksapi.ListTasksRequest{})
	if err != nil {
		return nil, err
	}
	resp, err := tasks.Metrics(ctx, &tasksapi.MetricsRequest{})
	if ignoreNotFound(err) != nil { // Compat: containerd's answer when a task ends meanwhile
		return nil, err
	}
	metrics := map[string]any{}
	for _, x := range resp.GetMetrics() {
		metrics[x.ID] = decodeAny(x.Data)
	}
	var rows []topView
	for _, t := range list.Tasks {
		if t.Status == task.Status_STOPPED || m.only != nil && !slices.Contains(m.only, t.ID) {
			continue
		}
		v := topView{Namespace: namespace, ID: t.ID, Status: t.Status.String(), PID: t.Pid}
		if c, ok := countersOf(metrics[t.ID], time.Now()); ok {
			key := topKey{namespace, t.ID}
			now[key] = c
			m.rates(&v, key, c)
		}
		rows = append(rows, v)
	}
	return rows, nil
}

func (m *monitor) rates(v *topView, key topKey, c counters) {
	v.Memory, v.MemoryLimit, v.PIDs = c.memory, c.limit, c.pids
	b, ok := m.before[key]
	if span := c.at.Sub(b.at).Seconds(); ok && span > 0 && c.cpu >= b.cpu {
		v.CPU = 100 * (c.cpu - b.cpu).Seconds() / span
		v.Read, v.Write = float64(without(c.read, b.read))/span, float64(without(c.write, b.write))/span
	}
	if m.history == nil {
		m.history = map[topKey]*curve{}
	}
	h := m.history[key]
	if h == nil {
		h = &curve{}
		m.history[key] = h
	}
	if ok {
		h.cpu, h.memory = tail(append(h.cpu, v.CPU), curveLength), tail(append(h.memory, float64(v.Memory)), curveLength)
	}
	v.cpus, v.memories = h.cpu, h.memory
}

func tail(s []float64, n int) []float64 { return s[max(0, len(s)-n):] }

// topOrders are the orders of --sort, with the key of the live display.
func topOrder(name string) (func(a, b topView) int, error) {
	byName := func(a, b topView) int { return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.ID, b.ID)) }
	orders := map[string]func(a, b topView) int{
		"cpu":    func(a, b topView) int { return cmp.Or(cmp.Compare(b.CPU, a.CPU), byName(a, b)) },
		"memory": func(a, b topView) int { return cmp.Or(cmp.Compare(b.Memory, a.Memory), byName(a, b)) },
		"io":     func(a, b topView) int { return cmp.Or(cmp.Compare(b.Read+b.Write, a.Read+a.Write), byName(a, b)) },
		"pids":   func(a, b topView) int { return cmp.Or(cmp.Compare(b.PIDs, a.PIDs), byName(a, b)) },
		"name":   byName,
	}
	if o, ok := orders[name]; ok {
		return o, nil
	}
	return nil, invalid("--sort %s: there are cpu, memory, io, pids and name", name)
}

func topAction(ctx context.Context, cmd *cli.Command, s *session) error {
	interval, order := cmd.Duration("interval"), cmd.String("sort")
	if interval < 100*time.Millisecond {
		return invalid("--interval %s is too short; the least is 100ms", interval)
	}
	if _, err := topOrder(order); err != nil {
		return err
	}
	m := &monitor{s: s, namespaces: []string{s.namespace}, only: cmd.Args().Slice()}
	if cmd.Bool("all-namespaces") {
		m.namespaces = nil
	}
	if len(m.only) == 0 {
		m.only = nil
	}
	for _, id := range m.only {
		if _, err := s.process(id, "").state(ctx); err != nil {
			return err
		}
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	if _, err := m.look(ctx); err != nil {
		return err
	}
	con, err := console.ConsoleFromFile(os.Stdout)
	if err == nil && !cmd.Bool("once") && cmd.String("format") == "" {
		return topLive(ctx, m, con, interval, order)
	}
	if err := pause(ctx, interval); err != nil {
		return err
	}
	rows, err := m.look(ctx)
	if err != nil {
		return err
	}
	compare, _ := topOrder(order) // checked above
	slices.SortFunc(rows, compare)
	return output.List(cmd.String("format"), rows, output.Narrow, "NAMESPACE\tTASK\tSTATUS\tCPU%\tMEMORY\tLIMIT\tREAD/S\tWRITE/S\tPIDS\t", func(v topView) string {
		return fmt.Sprintf("%s\t%s\t%s\t%.1f\t%s\t%s\t%s\t%s\t%d\t", v.Namespace, v.ID, v.Status, v.CPU, output.Size(int64(v.Memory)), limit(v.MemoryLimit), output.Size(int64(v.Read)), output.Size(int64(v.Write)), v.PIDs)
	})
}

func limit(n uint64) string {
	if n == 0 {
		return "-"
	}
	return output.Size(int64(n))
}

// pause waits, unless it is interrupted.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return withStatus{context.Cause(ctx), 128 + int(syscall.SIGINT)}
	case <-t.C:
		return nil
	}
}

// topLive draws until it is told to end.
func topLive(ctx context.Context, m *monitor, con console.Console, interval time.Duration, order string) error {
	if err := con.SetRaw(); err != nil {
		return err
	}
	defer con.Reset()
	// The alternate screen leaves what was there before as it was.
	fmt.Fprint(con, "\x1b[?1049h\x1b[?25l")
	defer fmt.Fprint(con, "\x1b[?25h\x1b[?1049l")
	keys := make(chan byte)
	go readKeys(con, keys)
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var rows []topView
	var failure error
	draw := func() {
		size, err := con.Size()
		if err != nil || size.Width == 0 {
			size.Width, size.Height = 80, 24
		}
		con.Write(drawTop(rows, order, failure, int(size.Width), int(size.Height)))
	}
	draw()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-resized:
		case <-tick.C:
			// A daemon that restarts is waited for.
			if rows, failure = m.look(ctx); failure != nil && !errdefs.IsUnavailable(failure) {
				return failure
			}
		case k, ok := <-keys:
			switch by := map[byte]string{'c': "cpu", 'm': "memory", 'i': "io", 'p': "pids", 'n': "name"}[k]; {
			case !ok, k == 'q', k == 3, k == 4: // Ctrl-C, Ctrl-D
				return nil
			case by != "":
				order = by
			}
		}
		draw()
	}
}

func readKeys(con console.Console, keys chan<- byte) {
	defer close(keys)
	for b := make([]byte, 1); ; {
		if n, err := con.Read(b); err != nil || n == 0 {
			return
		}
		keys <- b[0]
	}
}

// topFigures is the width of a line without its name and its curves.
const topFigures = 59

// drawTop is a whole screen.
func drawTop(rows []topView, order string, failure error, width, height int) []byte {
	if compare, err := topOrder(order); err == nil {
		slices.SortFunc(rows, compare)
	}
	var b bytes.Buffer
	line := func(s string) { fmt.Fprintf(&b, "%s\x1b[K\r\n", clip(s, width)) }
	var cpu, read, write float64
	var memory uint64
	names := 4
	for _, r := range rows {
		cpu, memory, read, write = cpu+r.CPU, memory+r.Memory, read+r.Read, write+r.Write
		names = max(names, len(r.ID))
	}
	b.WriteString("\x1b[H")
	line(fmt.Sprintf("%d running, CPU %.1f%%, memory %s, read %s/s, write %s/s", len(rows), cpu, output.Size(int64(memory)), output.Size(int64(read)), output.Size(int64(write))))
	if failure != nil {
		line("the daemon does not answer: " + output.Message(failure.Error()))
	} else {
		line("sorted by " + order + "; c m i p n sort by CPU, memory, IO, processes, name; q ends")
	}
	// Names give way to the figures, and what is left of the line is for two curves.
	names = min(names, max(8, min(24, width-topFigures)))
	graph := min(max((width-names-topFigures)/2, 0), curveLength)
	line(fmt.Sprintf("\x1b[7m%-*s %6s %-*s %10s %10s %-*s %10s %10s %5s\x1b[27m", names, "TASK", "CPU%", graph, "", "MEMORY", "LIMIT", graph, "", "READ/S", "WRITE/S", "PIDS"))
	for i, r := range rows {
		if i+4 >= height {
			line(fmt.Sprintf("… and %d more", len(rows)-i))
			break
		}
		line(fmt.Sprintf("%-*s %6.1f %s %10s %10s %s %10s %10s %5d", names, clip(r.ID, names), r.CPU, sparkline(r.cpus, graph, 100),
			output.Size(int64(r.Memory)), limit(r.MemoryLimit), sparkline(r.memories, graph, float64(r.MemoryLimit)), output.Size(int64(r.Read)), output.Size(int64(r.Write)), r.PIDs))
	}
	b.WriteString("\x1b[J")
	return b.Bytes()
}

// clip cuts a line to a width; escape sequences take none.
func clip(s string, width int) string {
	var out []rune
	n, escape := 0, false
	for _, r := range s {
		switch {
		case r == 0x1b:
			escape = true
		case escape:
			escape = r == '[' || r >= '0' && r <= '9' || r == ';'
		case n == width:
			continue
		default:
			n++
		}
		out = append(out, r)
	}
	return string(out)
}

// sparkline draws the last values in width characters. The top is full, or the
// largest value when there is none or it is passed.
func sparkline(values []float64, width int, full float64) string {
	values = tail(values, width)
	for _, v := range values {
		full = max(full, v)
	}
	steps := []rune("▁▂▃▄▅▆▇█")
	out := slices.Repeat([]rune{' '}, width-len(values))
	for _, v := range values {
		step := 0
		if full > 0 {
			step = min(int(v/full*float64(len(steps))), len(steps)-1)
		}
		out = append(out, steps[step])
	}
	return string(out)
}
