package doctor

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// checkLimits looks at what many containers run out of.
func checkLimits(_ context.Context, e *exam) {
	for _, s := range []struct {
		name  string
		least int64
		why   string
		want  int64
	}{
		{"fs.inotify.max_user_instances", 512, "programs in containers fail with \"too many open files\"", 8192},
		{"fs.inotify.max_user_watches", 65536, "watching files fails with \"no space left on device\"", 524288},
		{"kernel.pid_max", 32768, "forks fail with \"resource temporarily unavailable\"", 4194304},
		{"kernel.threads-max", 30000, "forks fail with \"resource temporarily unavailable\"", 256000},
		{"kernel.keys.root_maxkeys", 10000, "containers fail to start with \"unable to join session keyring: disk quota exceeded\"", 1000000},
		{"fs.file-max", 100000, "opening files fails on the whole host", 1048576},
		{"fs.nr_open", 1048576, "a higher limit of open files is refused", 1048576},
		{"vm.max_map_count", 65530, "databases and JVMs in containers fail to start", 262144},
	} {
		text := e.text("proc/sys/" + strings.ReplaceAll(s.name, ".", "/"))
		n, err := strconv.ParseInt(text, 10, 64)
		fix := fmt.Sprintf("sysctl -w %s=%d, and the same in /etc/sysctl.d to keep it", s.name, s.want)
		switch {
		case text == "":
			continue // this kernel has no such limit
		case err != nil:
			continue // larger than any number: no limit
		case n < s.least:
			e.add(s.name, Warning, fmt.Sprintf("%d is low: %s", n, s.why), fix)
		default:
			e.ok(s.name, "%d", n)
		}
	}
	if e.Root != "/" {
		return
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil && files.Max < 65536 {
		e.add("open files", Warning, fmt.Sprintf("at most %d for a process started from here", files.Max), "LimitNOFILE=1048576 in the daemon's unit, or ulimit -Hn 1048576")
	}
}

// checkSecurity looks at privileges and security modules.
func checkSecurity(_ context.Context, e *exam) {
	if e.Root == "/" && os.Geteuid() != 0 {
		e.add("user", Warning, "this is not root: some checks see less", "run ctr doctor as root")
	}
	caps, err := strconv.ParseUint(field(e.text("proc/self/status"), "CapEff:"), 16, 64)
	if err == nil {
		for _, c := range []struct {
			bit  uint
			name string
			bad  Status
			why  string
		}{
			{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", Problem, "nothing can be mounted and no namespace made"},
			{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", Warning, "networks of containers cannot be set up"},
			{unix.CAP_MKNOD, "CAP_MKNOD", Warning, "images with device nodes cannot be unpacked"},
			{unix.CAP_SYS_RESOURCE, "CAP_SYS_RESOURCE", Info, "oom scores cannot be lowered and hard limits not raised; they are clamped"},
		} {
			if caps&(1<<c.bit) == 0 {
				e.add(c.name, c.bad, "missing here: "+c.why, "")
			}
		}
	}
	switch field(e.text("proc/self/status"), "Seccomp_filters:") + field(e.text("proc/self/status"), "Seccomp:") {
	case "":
		e.add("seccomp", Warning, "not in this kernel: containers run without a filter of system calls", "a kernel with CONFIG_SECCOMP_FILTER")
	default:
		e.ok("seccomp", "available")
	}
	switch {
	case e.text("sys/module/apparmor/parameters/enabled") == "Y" && e.program("apparmor_parser") == "":
		e.add("AppArmor", Warning, "enabled, but profiles cannot be loaded", "apt-get install apparmor")
	case e.text("sys/module/apparmor/parameters/enabled") == "Y":
		e.ok("AppArmor", "enabled")
	case e.exists("sys/fs/selinux/enforce"):
		e.ok("SELinux", "enabled, enforcing: %s", e.text("sys/fs/selinux/enforce"))
	default:
		e.add("security modules", Info, "neither AppArmor nor SELinux confines containers here", "")
	}
}

// field is what follows a name at the start of a line.
func field(text, name string) string {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}
