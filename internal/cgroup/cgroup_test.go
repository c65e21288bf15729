package cgroup

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"testing"
	"time"

	v1 "github.com/containerd/cgroups/v3/cgroup1/stats"
	v2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"google.golang.org/protobuf/proto"
)

func TestParse(t *testing.T) {
	always := func(string) bool { return true }
	for name, tc := range map[string]struct {
		raw     string
		unified bool
		mounted func(string) bool
		want    map[string]string
	}{
		"unified":   {"0::/a/b\n", true, always, map[string]string{"": Mount + "/a/b"}},
		"hybrid":    {"5:memory:/a\n1:name=systemd:/b\n0::/c\n", false, always, map[string]string{"memory": Mount + "/memory/a", "name=systemd": Mount + "/systemd/b"}},
		"joint":     {"3:cpu,cpuacct:/a\n", false, always, map[string]string{"cpu": Mount + "/cpu/a", "cpuacct": Mount + "/cpuacct/a"}},
		"no link":   {"3:cpu,cpuacct:/a\n", false, func(d string) bool { return false }, map[string]string{"cpu": Mount + "/cpu,cpuacct/a", "cpuacct": Mount + "/cpu,cpuacct/a"}},
		"odd names": {"5:memory:/a:b c\n", false, always, map[string]string{"memory": Mount + "/memory/a:b c"}},
	} {
		g, err := parse(tc.raw, tc.unified, tc.mounted)
		if err != nil || !reflect.DeepEqual(g.paths, tc.want) {
			t.Errorf("%s: %v, %v; want %v", name, g.paths, err, tc.want)
		}
	}
	for _, raw := range []string{"x", "1:memory", "1:memory:a"} {
		if _, err := parse(raw, false, always); err == nil {
			t.Errorf("%q is taken", raw)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("5:memory:/a\n0::/c\n", false)
	f.Add("0::/", true)
	f.Fuzz(func(t *testing.T, raw string, unified bool) {
		_, _ = parse(raw, unified, func(string) bool { return true })
	})
}

// write makes the files of a control group.
func write(t *testing.T, files map[string]string) string {
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestMetrics1(t *testing.T) {
	dir := write(t, map[string]string{
		"pids.current": "3\n", "pids.max": "max\n",
		"cpuacct.usage": "12345\n", "cpuacct.stat": "user 5\nsystem 7\n", "cpuacct.usage_percpu": "100 200 \n",
		"cpu.stat":              "nr_periods 1\nnr_throttled 2\nthrottled_time 3\n",
		"memory.stat":           "cache 1\nrss 2\nhierarchical_memory_limit 16\nhierarchical_memsw_limit 17\ntotal_unevictable 32\nunknown 9\n",
		"memory.limit_in_bytes": "100\n", "memory.usage_in_bytes": "50\n", "memory.max_usage_in_bytes": "60\n", "memory.failcnt": "4\n",
		"memory.kmem.usage_in_bytes": "5\n", "memory.kmem.limit_in_bytes": "6\n",
		"memory.oom_control":                        "oom_kill_disable 0\nunder_oom 1\noom_kill 2\n",
		"blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 1\nTotal 4097\n",
		"hugetlb.2MB.usage_in_bytes":                "1\n", "hugetlb.2MB.max_usage_in_bytes": "2\n", "hugetlb.2MB.failcnt": "3\n",
		"rdma.current": "mlx4_0 hca_handle=2 hca_object=2000\n", "rdma.max": "mlx4_0 hca_handle=max hca_object=1\n",
	})
	g := Group{paths: map[string]string{"pids": dir, "cpu": dir, "cpuacct": dir, "memory": dir, "blkio": dir, "hugetlb": dir, "rdma": dir}}
	url, raw, err := g.Metrics()
	if err != nil || url != "io.containerd.cgroups.v1.Metrics" {
		t.Fatal(url, err)
	}
	got := new(v1.Metrics)
	if err := proto.Unmarshal(raw, got); err != nil {
		t.Fatal(err)
	}
	if got.Blkio != nil {
		for _, e := range got.Blkio.IoServiceBytesRecursive {
			e.Device = "" // what 8:0 is called depends on the machine
		}
	}
	want := &v1.Metrics{
		Hugetlb: []*v1.HugetlbStat{{Usage: 1, Max: 2, Failcnt: 3, Pagesize: "2MB"}},
		Pids:    &v1.PidsStat{Current: 3},
		CPU: &v1.CPUStat{
			Usage:      &v1.CPUUsage{Total: 12345, Kernel: 70000000, User: 50000000, PerCPU: []uint64{100, 200}},
			Throttling: &v1.Throttle{Periods: 1, ThrottledPeriods: 2, ThrottledTime: 3},
		},
		Memory: &v1.MemoryStat{
			Cache: 1, RSS: 2, HierarchicalMemoryLimit: 16, HierarchicalSwapLimit: 17, TotalUnevictable: 32,
			Usage: &v1.MemoryEntry{Limit: 100, Usage: 50, Max: 60, Failcnt: 4}, Kernel: &v1.MemoryEntry{Limit: 6, Usage: 5},
		},
		Blkio:            &v1.BlkIOStat{IoServiceBytesRecursive: []*v1.BlkIOEntry{{Op: "Read", Major: 8, Value: 4096}, {Op: "Write", Major: 8, Value: 1}}},
		Rdma:             &v1.RdmaStat{Current: []*v1.RdmaEntry{{Device: "mlx4_0", HcaHandles: 2, HcaObjects: 2000}}, Limit: []*v1.RdmaEntry{{Device: "mlx4_0", HcaHandles: 1<<32 - 1, HcaObjects: 1}}},
		MemoryOomControl: &v1.MemoryOomControl{UnderOom: 1, OomKill: 2},
	}
	if !proto.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestMetrics2(t *testing.T) {
	dir := write(t, map[string]string{
		"pids.current": "3\n", "pids.max": "10\n",
		"cpu.stat":       "usage_usec 1\nuser_usec 2\nsystem_usec 3\nnr_periods 4\nnr_throttled 5\nthrottled_usec 6\nnr_bursts 8\nburst_usec 9\n",
		"cpu.pressure":   "some avg10=1.50 avg60=0.00 avg300=0.25 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=8\n",
		"memory.stat":    "anon 1\nfile 2\nworkingset_refault_anon 3\nworkingset_refault_file 4\nthp_collapse_alloc 31\n",
		"memory.current": "32\n", "memory.max": "max\n", "memory.swap.current": "34\n", "memory.swap.max": "35\n", "memory.peak": "36\n",
		"memory.events":       "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\n",
		"io.stat":             "8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n",
		"hugetlb.2MB.current": "1\n", "hugetlb.2MB.max": "2\n", "hugetlb.2MB.events": "max 4\n", "hugetlb.2MB.rsvd.current": "0\n",
	})
	url, raw, err := Group{paths: map[string]string{"": dir}}.Metrics()
	if err != nil || url != "io.containerd.cgroups.v2.Metrics" {
		t.Fatal(url, err)
	}
	got := new(v2.Metrics)
	if err := proto.Unmarshal(raw, got); err != nil {
		t.Fatal(err)
	}
	want := &v2.Metrics{
		Pids: &v2.PidsStat{Current: 3, Limit: 10},
		CPU: &v2.CPUStat{UsageUsec: 1, UserUsec: 2, SystemUsec: 3, NrPeriods: 4, NrThrottled: 5, ThrottledUsec: 6, NrBursts: 8, BurstUsec: 9,
			PSI: &v2.PSIStats{Some: &v2.PSIData{Avg10: 1.5, Avg300: 0.25, Total: 7}, Full: &v2.PSIData{Total: 8}}},
		Memory: &v2.MemoryStat{Anon: 1, File: 2, WorkingsetRefault: 7, ThpCollapseAlloc: 31, Usage: 32, UsageLimit: 1<<64 - 1, SwapUsage: 34, SwapLimit: 35, MaxUsage: 36},
		Rdma:   &v2.RdmaStat{},
		Io:     &v2.IOStat{Usage: []*v2.IOEntry{{Major: 8, Minor: 16, Rbytes: 1, Wbytes: 2, Rios: 3, Wios: 4}}},

		Hugetlb:      []*v2.HugeTlbStat{{Current: 1, Max: 2, Pagesize: "2MB", Failcnt: 4}},
		MemoryEvents: &v2.MemoryEvents{Low: 1, High: 2, Max: 3, Oom: 4, OomKill: 5, OomGroupKill: 6},
	}
	if !proto.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// A group of this machine, whatever its version.
func TestRealGroup(t *testing.T) {
	g, err := Of(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	url, raw, err := g.Metrics()
	if err != nil {
		t.Fatal(err)
	}
	var m proto.Message = new(v1.Metrics)
	if url == "io.containerd.cgroups.v2.Metrics" {
		m = new(v2.Metrics)
	}
	if err := proto.Unmarshal(raw, m); err != nil {
		t.Error(err)
	}
}

// child makes a memory group of version 1 with a limit.
func child(t *testing.T) Group {
	if os.Geteuid() != 0 {
		t.Skip("control groups are made by root")
	}
	own, err := Of(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	parent, ok := own.paths["memory"]
	if !ok {
		t.Skip("this host has no memory controller of version 1")
	}
	dir := filepath.Join(parent, "berth-test-"+strconv.Itoa(os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() {
		for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); {
			if err := os.Remove(dir); err == nil || errors.Is(err, os.ErrNotExist) {
				break // it is busy until the kernel has seen its processes off
			}
		}
	})
	if err := os.WriteFile(filepath.Join(dir, "memory.limit_in_bytes"), []byte("16777216"), 0); err != nil {
		t.Fatal(err)
	}
	return Group{paths: map[string]string{"memory": dir}}
}

func TestOOM(t *testing.T) {
	g := child(t)
	told := make(chan struct{}, 100)
	w, err := g.WatchOOM(func() { told <- struct{}{} })
	if err != nil {
		t.Fatal(err)
	}
	procs := filepath.Join(g.paths["memory"], "cgroup.procs")
	out, err := exec.Command("sh", "-c", "echo $$ >"+procs+"; exec tail /dev/zero").CombinedOutput()
	if err == nil {
		t.Fatalf("it was not killed: %s", out)
	}
	w.Flush()
	select {
	case <-told:
	default:
		t.Error("nothing was told, though the process has ended")
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

func TestNoOOM(t *testing.T) {
	g := child(t)
	w, err := g.WatchOOM(func() { t.Error("told of being out of memory") })
	if err != nil {
		t.Fatal(err)
	}
	procs := filepath.Join(g.paths["memory"], "cgroup.procs")
	if out, err := exec.Command("sh", "-c", "echo $$ >"+procs+"; exec true").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	w.Flush()
	// Removing the group is an event of the kernel's, too.
	if err := os.Remove(g.paths["memory"]); err != nil {
		t.Fatal(err)
	}
	<-w.ended
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}
