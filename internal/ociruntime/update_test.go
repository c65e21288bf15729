package ociruntime

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// disk is the number of some block device of this machine, as in 254:0.
func disk(t *testing.T) (major, minor int64) {
	devices, _ := filepath.Glob("/sys/block/*/dev")
	for _, d := range devices {
		raw, err := os.ReadFile(d)
		if err != nil || strings.Contains(d, "/ram") {
			continue
		}
		if _, err := fmt.Sscanf(string(raw), "%d:%d", &major, &minor); err == nil {
			return major, minor
		}
	}
	t.Skip("this machine has no block device")
	return 0, 0
}

// limits of the container, by file.
func (h *host) limits(id string) map[string]string {
	all := map[string]string{}
	for _, pattern := range []string{
		"memory/%s/memory.limit_in_bytes", "memory/%s/memory.memsw.limit_in_bytes", "memory/%s/memory.soft_limit_in_bytes",
		"cpu/%s/cpu.shares", "cpu/%s/cpu.cfs_quota_us", "cpu/%s/cpu.cfs_period_us", "cpu/%s/cpu.idle", "cpu/%s/cpu.cfs_burst_us",
		"cpuset/%s/cpuset.cpus", "cpuset/%s/cpuset.mems", "pids/%s/pids.max", "blkio/%s/blkio.throttle.*_device",
		"%s/memory.max", "%s/memory.swap.max", "%s/memory.low", "%s/cpu.weight", "%s/cpu.max", "%s/cpu.idle", "%s/cpuset.cpus", "%s/pids.max", "%s/io.max",
	} {
		files, _ := filepath.Glob(filepath.Join("/sys/fs/cgroup", fmt.Sprintf(pattern, h.cgroups+"/"+id)))
		for _, f := range files {
			if raw, err := os.ReadFile(f); err == nil {
				all[filepath.Base(f)] = strings.TrimSpace(string(raw))
			}
		}
	}
	return all
}

// An update by the built-in driver does what runc's does, with whatever was set
// before. Steps are OCI LinuxResources.
func TestUpdate(t *testing.T) {
	if _, err := exec.LookPath("runc"); err != nil {
		t.Skip("there is no runc on the PATH to compare with")
	}
	major, minor := disk(t)
	rate := func(field string, n int) string {
		return fmt.Sprintf(`{"blockIO":{"%s":[{"major":%d,"minor":%d,"rate":%d}]}}`, field, major, minor, n)
	}
	cases := map[string][]string{
		"memory":             {`{"memory":{"limit":67108864}}`, `{"memory":{"limit":134217728,"reservation":33554432}}`},
		"swap-kept":          {`{"memory":{"limit":67108864,"swap":134217728}}`, `{"memory":{"limit":100663296}}`},
		"no-limit":           {`{"memory":{"limit":67108864,"swap":134217728}}`, `{"memory":{"limit":-1}}`},
		"limit-beyond-swap":  {`{"memory":{"limit":67108864,"swap":134217728}}`, `{"memory":{"limit":268435456}}`},
		"both-grow":          {`{"memory":{"limit":67108864,"swap":67108864}}`, `{"memory":{"limit":268435456,"swap":268435456}}`},
		"both-shrink":        {`{"memory":{"limit":268435456,"swap":268435456}}`, `{"memory":{"limit":67108864,"swap":67108864}}`},
		"shares":             {`{"cpu":{"shares":512}}`, `{"cpu":{"quota":20000}}`, `{"cpu":{"period":50000}}`},
		"quota":              {`{"cpu":{"quota":20000,"period":40000}}`, `{"cpu":{"quota":-1}}`, `{"cpu":{"shares":100}}`},
		"burst":              {`{"cpu":{"quota":20000,"period":40000,"burst":10000}}`, `{"cpu":{"quota":5000}}`},
		"idle":               {`{"cpu":{"shares":512}}`, `{"cpu":{"idle":1}}`, `{"cpu":{"idle":0,"shares":300}}`},
		"cpus":               {`{"cpu":{"cpus":"0","mems":"0"}}`, `{"pids":{"limit":100}}`},
		"pids":               {`{"pids":{"limit":100}}`, `{"memory":{"limit":67108864}}`, `{"pids":{"limit":-1}}`},
		"throttle":           {rate("throttleReadBpsDevice", 1<<20), rate("throttleReadBpsDevice", 2<<20), rate("throttleWriteBpsDevice", 3<<20), rate("throttleWriteIOPSDevice", 400)},
		"bad-cpus":           {`{"cpu":{"cpus":"9999"}}`},
		"memory-after-error": {`{"cpu":{"cpus":"9999"}}`, `{"memory":{"limit":67108864}}`},
	}
	got := map[string]map[string][]string{}
	drivers(t, func(t *testing.T, h *host) {
		_, external := h.driver.(*External)
		results := map[string][]string{}
		got[map[bool]string{true: "runc", false: "builtin"}[external]] = results
		for _, name := range slices.Sorted(maps.Keys(cases)) {
			c := h.run(name, h.spec(name, "sleep", "1000"), Stdio{})
			for _, step := range cases[name] {
				resources := new(specs.LinuxResources)
				if err := json.Unmarshal([]byte(step), resources); err != nil {
					t.Fatal(err)
				}
				err := c.Update(t.Context(), resources)
				results[name] = append(results[name], fmt.Sprint(step, ": failed: ", err != nil, " ", h.limits(name)))
			}
			if err := c.Signal(t.Context(), unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			collect(t, c.Init())
			if err := c.Delete(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	})
	for name := range cases {
		if ours, theirs := got["builtin"][name], got["runc"][name]; !slices.Equal(ours, theirs) {
			t.Errorf("%s:\n%s\nrunc:\n%s", name, strings.Join(ours, "\n"), strings.Join(theirs, "\n"))
		}
	}
}
