package metrics

import (
	"context"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"runtime/pprof"
	"strconv"
	"strings"
	"time"
)

// GoRuntime writes the state of Go's runtime.
func GoRuntime(_ context.Context, w *Writer) {
	gc := debug.GCStats{PauseQuantiles: make([]time.Duration, 5)}
	debug.ReadGCStats(&gc)
	const pauses = "go_gc_duration_seconds"
	w.Family(pauses, summary, "A summary of the wall-time pause (stop-the-world) duration in garbage collection cycles.")
	for i, q := range gc.PauseQuantiles {
		w.Sample(pauses, q.Seconds(), "quantile", number(float64(i)/4))
	}
	w.Sample(pauses+"_sum", gc.PauseTotal.Seconds())
	w.Sample(pauses+"_count", float64(gc.NumGC))

	samples := []metrics.Sample{{Name: "/gc/gogc:percent"}, {Name: "/gc/gomemlimit:bytes"}, {Name: "/sched/gomaxprocs:threads"}}
	metrics.Read(samples)
	value := func(i int) float64 {
		if samples[i].Value.Kind() != metrics.KindUint64 {
			return math.NaN()
		}
		return float64(samples[i].Value.Uint64())
	}
	w.single("go_gc_gogc_percent", gauge, "Heap size target percentage configured by the user, otherwise 100.", value(0))
	w.single("go_gc_gomemlimit_bytes", gauge, "Go runtime memory limit configured by the user, otherwise math.MaxInt64.", value(1))
	w.single("go_goroutines", gauge, "Number of goroutines that currently exist.", float64(runtime.NumGoroutine()))
	w.Family("go_info", gauge, "Information about the Go environment.")
	w.Sample("go_info", 1, "version", runtime.Version())

	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	for _, f := range []struct {
		name, kind string
		value      uint64
		help       string
	}{
		{"alloc_bytes", gauge, m.Alloc, "Number of bytes allocated in heap and currently in use."},
		{"alloc_bytes_total", counter, m.TotalAlloc, "Total number of bytes allocated in heap until now, even if released already."},
		{"buck_hash_sys_bytes", gauge, m.BuckHashSys, "Number of bytes used by the profiling bucket hash table."},
		{"frees_total", counter, m.Frees, "Total number of heap objects frees."},
		{"gc_sys_bytes", gauge, m.GCSys, "Number of bytes used for garbage collection system metadata."},
		{"heap_alloc_bytes", gauge, m.HeapAlloc, "Number of heap bytes allocated and currently in use."},
		{"heap_idle_bytes", gauge, m.HeapIdle, "Number of heap bytes waiting to be used."},
		{"heap_inuse_bytes", gauge, m.HeapInuse, "Number of heap bytes that are in use."},
		{"heap_objects", gauge, m.HeapObjects, "Number of currently allocated objects."},
		{"heap_released_bytes", gauge, m.HeapReleased, "Number of heap bytes released to OS."},
		{"heap_sys_bytes", gauge, m.HeapSys, "Number of heap bytes obtained from system."},
		{"mallocs_total", counter, m.Mallocs, "Total number of heap objects allocated, both live and gc-ed."},
		{"mcache_inuse_bytes", gauge, m.MCacheInuse, "Number of bytes in use by mcache structures."},
		{"mcache_sys_bytes", gauge, m.MCacheSys, "Number of bytes used for mcache structures obtained from system."},
		{"mspan_inuse_bytes", gauge, m.MSpanInuse, "Number of bytes in use by mspan structures."},
		{"mspan_sys_bytes", gauge, m.MSpanSys, "Number of bytes used for mspan structures obtained from system."},
		{"next_gc_bytes", gauge, m.NextGC, "Number of heap bytes when next garbage collection will take place."},
		{"other_sys_bytes", gauge, m.OtherSys, "Number of bytes used for other system allocations."},
		{"stack_inuse_bytes", gauge, m.StackInuse, "Number of bytes obtained from system for stack allocator in non-CGO environments."},
		{"stack_sys_bytes", gauge, m.StackSys, "Number of bytes obtained from system for stack allocator."},
		{"sys_bytes", gauge, m.Sys, "Number of bytes obtained from system."},
	} {
		w.single("go_memstats_"+f.name, f.kind, f.help, float64(f.value))
	}
	w.single("go_memstats_last_gc_time_seconds", gauge, "Number of seconds since 1970 of last garbage collection.", float64(m.LastGC)/1e9)
	w.single("go_sched_gomaxprocs_threads", gauge, "The current runtime.GOMAXPROCS setting.", value(2))
	w.single("go_threads", gauge, "Number of OS threads created.", float64(pprof.Lookup("threadcreate").Count()))
}

// clockTick is the kernel's USER_HZ, 100 on every architecture that Go runs on.
const clockTick = 100

// Process writes what the kernel says about this process. What cannot be read
// is left out.
func Process(_ context.Context, w *Writer) {
	if data, err := os.ReadFile("/proc/self/stat"); err == nil {
		// The name in parentheses may have spaces.
		fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		at := func(i int) float64 { // by its number in proc(5)
			v, _ := strconv.ParseFloat(fields[i-3], 64)
			return v
		}
		if len(fields) > 22 {
			w.single("process_cpu_seconds_total", counter, "Total user and system CPU time spent in seconds.", (at(14)+at(15))/clockTick)
			w.single("process_resident_memory_bytes", gauge, "Resident memory size in bytes.", at(24)*float64(os.Getpagesize()))
			w.single("process_start_time_seconds", gauge, "Start time of the process since unix epoch in seconds.", bootTime()+at(22)/clockTick)
			w.single("process_virtual_memory_bytes", gauge, "Virtual memory size in bytes.", at(23))
		}
	}
	if limits, err := os.ReadFile("/proc/self/limits"); err == nil {
		w.single("process_max_fds", gauge, "Maximum number of open file descriptors.", limit(string(limits), "Max open files"))
		w.single("process_virtual_memory_max_bytes", gauge, "Maximum amount of virtual memory available in bytes.", limit(string(limits), "Max address space"))
	}
	if dir, err := os.Open("/proc/self/fd"); err == nil {
		names, err := dir.Readdirnames(-1)
		dir.Close()
		if err == nil {
			w.single("process_open_fds", gauge, "Number of open file descriptors.", float64(len(names)-1))
		}
	}
	if in, out, ok := octets(); ok {
		w.single("process_network_receive_bytes_total", counter, "Number of bytes received by the process over the network.", in)
		w.single("process_network_transmit_bytes_total", counter, "Number of bytes sent by the process over the network.", out)
	}
}

func bootTime() float64 {
	data, _ := os.ReadFile("/proc/stat")
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "btime "); ok {
			v, _ := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			return v
		}
	}
	return 0
}

// limit is the soft limit of that name; unlimited is 2^64-1, as others write it.
func limit(limits, name string) float64 {
	for line := range strings.Lines(limits) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				if v, err := strconv.ParseFloat(f[0], 64); err == nil {
					return v
				}
			}
		}
	}
	return math.MaxUint64
}

// octets are the bytes in and out of the process's network namespace.
func octets() (in, out float64, ok bool) {
	data, err := os.ReadFile("/proc/self/net/netstat")
	if err != nil {
		return 0, 0, false
	}
	var names []string
	for line := range strings.Lines(string(data)) {
		rest, is := strings.CutPrefix(line, "IpExt: ")
		if !is {
			continue
		}
		if names == nil {
			names = strings.Fields(rest)
			continue
		}
		for i, v := range strings.Fields(rest) {
			if i >= len(names) {
				break
			}
			switch names[i] {
			case "InOctets":
				in, _ = strconv.ParseFloat(v, 64)
			case "OutOctets":
				out, _ = strconv.ParseFloat(v, 64)
			}
		}
		return in, out, true
	}
	return 0, 0, false
}
