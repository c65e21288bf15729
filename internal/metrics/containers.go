package metrics

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"berth/internal/object"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Container is one whose shim is asked for metrics.
type Container struct{ Namespace, ID, Runtime string }

// Containers are the metrics of all containers' cgroups.
type Containers struct {
	// List names the containers that run.
	List func(ctx context.Context) ([]Container, error)
	// Stats asks a shim.
	Stats func(ctx context.Context, namespace, id string) (object.Any, time.Time, error)
	// Timeout bounds how long all shims together hold up a scrape.
	Timeout func() time.Duration
	Log     *slog.Logger
}

// field of a cgroup's message that is a family: "cpu.usage.total".
type field struct{ name, path, help string }

type answer struct {
	container Container
	message   protoreflect.Message
}

// Collect asks all shims at the same time and writes what has been answered
// within the timeout; the rest is left out, and the log says so.
func (c *Containers) Collect(ctx context.Context, w *Writer) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout())
	defer cancel()
	list, err := c.List(ctx)
	if err != nil {
		c.Log.Warn("the metrics of containers are left out", "error", err)
		return
	}
	answers := c.ask(ctx, list)
	slices.SortFunc(answers, func(a, b answer) int {
		if a.container.Namespace != b.container.Namespace {
			return strings.Compare(a.container.Namespace, b.container.Namespace)
		}
		return strings.Compare(a.container.ID, b.container.ID)
	})
	// A hybrid host has containers of one version only.
	writeFields(w, fieldsV1(), (*v1.Metrics)(nil).ProtoReflect().Descriptor().FullName(), answers)
	writeListsV1(w, answers)
	writeFields(w, fieldsV2(), (*v2.Metrics)(nil).ProtoReflect().Descriptor().FullName(), answers)
	writeListsV2(w, answers)
}

// ask returns the answers that have come when ctx ends. A call that does not
// return even then is left behind, it hangs in its shim's connection.
func (c *Containers) ask(ctx context.Context, list []Container) []answer {
	var (
		mu      sync.Mutex
		answers []answer
		group   sync.WaitGroup
		done    = make(chan struct{})
	)
	for _, container := range list {
		group.Go(func() {
			m, err := c.one(ctx, container)
			if err != nil {
				if !errdefs.IsNotFound(err) && !errors.Is(err, context.Canceled) { // one that has just ended, a scrape given up
					c.Log.Warn("the metrics of a container are left out", "namespace", container.Namespace, "id", container.ID, "error", err)
				}
				return
			}
			mu.Lock()
			defer mu.Unlock()
			answers = append(answers, answer{container, m})
		})
	}
	go func() {
		group.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
	mu.Lock()
	defer mu.Unlock()
	return slices.Clone(answers)
}

func (c *Containers) one(ctx context.Context, container Container) (protoreflect.Message, error) {
	data, _, err := c.Stats(ctx, container.Namespace, container.ID)
	if err != nil {
		return nil, err
	}
	var m proto.Message
	switch name := data.TypeURL[strings.LastIndexByte(data.TypeURL, '/')+1:]; name {
	case "io.containerd.cgroups.v1.Metrics":
		m = new(v1.Metrics)
	case "io.containerd.cgroups.v2.Metrics":
		m = new(v2.Metrics)
	default:
		return nil, errdefs.ErrNotFound // a runtime with metrics of its own
	}
	if err := proto.Unmarshal(data.Value, m); err != nil {
		return nil, err
	}
	return m.ProtoReflect(), nil
}

func (a answer) labels(more ...string) []string {
	// In the order of their names, as every client library has them.
	labels := [][2]string{{"container_id", a.container.ID}, {"namespace", a.container.Namespace}, {"runtime", a.container.Runtime}}
	for i := 0; i+1 < len(more); i += 2 {
		labels = append(labels, [2]string{more[i], more[i+1]})
	}
	slices.SortFunc(labels, func(a, b [2]string) int { return strings.Compare(a[0], b[0]) })
	flat := make([]string, 0, 2*len(labels))
	for _, l := range labels {
		flat = append(flat, l[0], l[1])
	}
	return flat
}

func writeFields(w *Writer, fields []field, of protoreflect.FullName, answers []answer) {
	for _, f := range fields {
		begun := false
		for _, a := range answers {
			if a.message.Descriptor().FullName() != of {
				continue
			}
			v, ok := lookup(a.message, f.path)
			if !ok {
				continue
			}
			if !begun {
				w.Family("container_"+f.name, gauge, f.help)
				begun = true
			}
			w.Sample("container_"+f.name, v, a.labels()...)
		}
	}
}

// lookup reads a number by the names of its fields; false when a message on the
// way is not there, or a name is not known.
func lookup(m protoreflect.Message, path string) (float64, bool) {
	for {
		name, rest, more := strings.Cut(path, ".")
		fd := m.Descriptor().Fields().ByName(protoreflect.Name(name))
		if fd == nil {
			return 0, false
		}
		if !more {
			return float64(m.Get(fd).Uint()), true
		}
		if !m.Has(fd) {
			return 0, false
		}
		m, path = m.Get(fd).Message(), rest
	}
}

// writeList writes a family of which a container has several samples.
func writeList[M any](w *Writer, answers []answer, name, help string, samples func(M, func(value uint64, labels ...string))) {
	begun := false
	for _, a := range answers {
		m, ok := a.message.Interface().(M)
		if !ok {
			continue
		}
		samples(m, func(value uint64, labels ...string) {
			if !begun {
				w.Family("container_"+name, gauge, help)
				begun = true
			}
			w.Sample("container_"+name, float64(value), a.labels(labels...)...)
		})
	}
}

func writeListsV1(w *Writer, answers []answer) {
	writeList(w, answers, "per_cpu_nanoseconds", "The total cpu time per cpu", func(m *v1.Metrics, add func(uint64, ...string)) {
		for i, v := range m.GetCPU().GetUsage().GetPerCPU() {
			add(v, "cpu", strconv.Itoa(i))
		}
	})
	for _, f := range []struct {
		name, help string
		value      func(*v1.HugetlbStat) uint64
	}{
		{"hugetlb_usage_bytes", "The hugetlb usage", (*v1.HugetlbStat).GetUsage},
		{"hugetlb_failcnt_total", "The hugetlb failcnt", (*v1.HugetlbStat).GetFailcnt},
		{"hugetlb_max_bytes", "The hugetlb maximum usage", (*v1.HugetlbStat).GetMax},
	} {
		writeList(w, answers, f.name, f.help, func(m *v1.Metrics, add func(uint64, ...string)) {
			for _, h := range m.GetHugetlb() {
				add(f.value(h), "page", h.Pagesize)
			}
		})
	}
	for _, f := range []struct {
		name, help string
		entries    func(*v1.BlkIOStat) []*v1.BlkIOEntry
	}{
		{"blkio_io_merged_recursive_total", "The blkio io merged recursive", (*v1.BlkIOStat).GetIoMergedRecursive},
		{"blkio_io_queued_recursive_total", "The blkio io queued recursive", (*v1.BlkIOStat).GetIoQueuedRecursive},
		{"blkio_io_service_bytes_recursive_bytes", "The blkio io service bytes recursive", (*v1.BlkIOStat).GetIoServiceBytesRecursive},
		{"blkio_io_service_time_recursive_total", "The blkio io service time recursive", (*v1.BlkIOStat).GetIoServiceTimeRecursive},
		{"blkio_io_serviced_recursive_total", "The blkio io serviced recursive", (*v1.BlkIOStat).GetIoServicedRecursive},
		{"blkio_io_time_recursive_total", "The blkio io time recursive", (*v1.BlkIOStat).GetIoTimeRecursive},
		{"blkio_sectors_recursive_total", "The blkio sectors recursive", (*v1.BlkIOStat).GetSectorsRecursive},
	} {
		writeList(w, answers, f.name, f.help, func(m *v1.Metrics, add func(uint64, ...string)) {
			for _, e := range f.entries(m.GetBlkio()) {
				add(e.Value, "op", e.Op, "device", e.Device, "major", strconv.FormatUint(e.Major, 10), "minor", strconv.FormatUint(e.Minor, 10))
			}
		})
	}
}

func writeListsV2(w *Writer, answers []answer) {
	for _, f := range []struct {
		name, help string
		value      func(*v2.IOEntry) uint64
	}{
		{"io_rbytes_bytes", "IO bytes read", (*v2.IOEntry).GetRbytes},
		{"io_wbytes_bytes", "IO bytes written", (*v2.IOEntry).GetWbytes},
		{"io_rios_total", "Number of read IOs", (*v2.IOEntry).GetRios},
		{"io_wios_total", "Number of write IOs", (*v2.IOEntry).GetWios},
	} {
		writeList(w, answers, f.name, f.help, func(m *v2.Metrics, add func(uint64, ...string)) {
			for _, e := range m.GetIo().GetUsage() {
				add(f.value(e), "major", strconv.FormatUint(e.Major, 10), "minor", strconv.FormatUint(e.Minor, 10))
			}
		})
	}
}
