package doctor

import (
	"context"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// checkCgroups finds the version and the controllers that limits need.
func checkCgroups(_ context.Context, e *exam) {
	if b := e.text("sys/fs/cgroup/cgroup.controllers"); b != "" || e.exists("sys/fs/cgroup/cgroup.procs") {
		e.ok("version", "2 (unified)")
		e.controllers(strings.Fields(b), []string{"cpu", "memory", "pids"}, []string{"cpuset", "io"})
	} else if mounted := e.hierarchies(); len(mounted) > 0 {
		e.add("version", Info, "1: newer software expects version 2", "boot with systemd.unified_cgroup_hierarchy=1")
		e.controllers(mounted, []string{"cpu", "cpuacct", "devices", "freezer", "memory", "pids"}, []string{"blkio", "cpuset"})
	} else {
		e.add("version", Problem, "no cgroup file system is mounted at /sys/fs/cgroup", "mount -t cgroup2 cgroup2 /sys/fs/cgroup")
		return
	}
	if e.Root == "/" && unix.Access("/sys/fs/cgroup", unix.W_OK) != nil {
		e.add("writable", Problem, "/sys/fs/cgroup is read-only here", "run as root on the host; a container needs its cgroups delegated")
	}
	if strings.Contains(e.text("proc/cmdline"), "cgroup_disable=memory") {
		e.add("memory", Problem, "it is switched off on the kernel's command line", "remove cgroup_disable=memory and reboot")
	}
}

// hierarchies are the controllers of version 1 that are mounted.
func (e *exam) hierarchies() (out []string) {
	entries, _ := os.ReadDir(e.path("sys/fs/cgroup"))
	for _, d := range entries {
		if e.exists("sys/fs/cgroup/" + d.Name() + "/cgroup.procs") {
			out = append(out, strings.Split(d.Name(), ",")...)
		}
	}
	return out
}

func (e *exam) controllers(have, need, want []string) {
	missing := func(names []string) (out []string) {
		for _, n := range names {
			if !slices.Contains(have, n) {
				out = append(out, n)
			}
		}
		return out
	}
	if m := missing(need); len(m) > 0 {
		e.add("controllers", Problem, "missing: "+strings.Join(m, ", ")+"; limits of that kind do nothing or fail", "a kernel with these cgroup controllers, enabled in /sys/fs/cgroup/cgroup.subtree_control")
		return
	}
	if m := missing(want); len(m) > 0 {
		e.add("controllers", Warning, "missing: "+strings.Join(m, ", ")+"; limits of that kind cannot be set", "a kernel with these cgroup controllers")
		return
	}
	e.ok("controllers", "%s", strings.Join(append(need, want...), ", "))
}
