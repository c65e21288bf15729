// Package spec builds OCI runtime specs: the default for a Linux container, and
// that default changed by an image's configuration and a client's wishes.
//
// Everything is a function of its arguments. What the host contributes (its
// devices, its name, the capabilities of this process) is read by functions of
// its own, so that a caller decides when to look and a test what to see.
//
// The results are equal, byte for byte once serialised, to what containerd's
// client generates for the same input: other tools compare and edit them. The
// golden files in cmd/ctr/testdata/spec were made by containerd's own ctr; generate
// there says how.
//
// Names of users and groups are looked up in the container's root filesystem,
// whose content is hostile: see Rootfs.
package spec

import (
	"path"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// TypeURL marks a serialised specs.Spec in a container record. The value is
// JSON.
const TypeURL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

// ProcessTypeURL marks a serialised specs.Process in an exec request.
const ProcessTypeURL = "types.containerd.io/opencontainers/runtime-spec/1/Process"

const rwm = "rwm"

// Default is the spec that a container starts from: its own namespaces but for
// user and cgroup, fourteen capabilities, no new privileges, the usual file
// systems, no device that is not listed. The default rules for device nodes are
// not among them: see DefaultDeviceRules. throttle are the paths of
// ThrottlePaths, which are masked with the others.
func Default(namespace, id string, throttle []string) *specs.Spec {
	return &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Cwd:             "/",
			NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{
				Bounding:  DefaultCapabilities(),
				Permitted: DefaultCapabilities(),
				Effective: DefaultCapabilities(),
			},
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 1024}},
		},
		Mounts: DefaultMounts(),
		Linux: &specs.Linux{
			MaskedPaths:   append(maskedPaths(), throttle...),
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			CgroupsPath:   path.Join("/", namespace, id),
			Resources:     &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: rwm}}},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.NetworkNamespace},
			},
		},
	}
}

// DefaultCapabilities are those that a container has unless asked otherwise.
func DefaultCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
		"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
	}
}

func maskedPaths() []string {
	return []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware",
		"/sys/devices/virtual/powercap", "/proc/scsi",
	}
}

// DefaultMounts are the file systems that every container has.
func DefaultMounts() []specs.Mount {
	m := func(destination, kind, source string, options ...string) specs.Mount {
		return specs.Mount{Destination: destination, Type: kind, Source: source, Options: options}
	}
	return []specs.Mount{
		m("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
		m("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
		m("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
		m("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
		m("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
		m("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
		m("/run", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
	}
}

// DefaultDeviceRules allow the device nodes that the runtime makes in every
// container: null, random, full, tty, zero, urandom, console, pts/*, ptmx.
func DefaultDeviceRules() []specs.LinuxDeviceCgroup {
	char := func(major, minor int64) specs.LinuxDeviceCgroup {
		rule := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Access: rwm}
		if minor >= 0 {
			rule.Minor = &minor
		}
		return rule
	}
	return []specs.LinuxDeviceCgroup{
		char(1, 3), char(1, 8), char(1, 7), char(5, 0), char(1, 5), char(1, 9), char(5, 1), char(136, -1), char(5, 2),
	}
}

// MakePrivileged gives the process caps, and takes away what hides or protects
// parts of /proc and /sys, the LSM profiles and the seccomp filter.
func MakePrivileged(s *specs.Spec, caps []string) {
	c := s.Process.Capabilities
	c.Bounding, c.Effective, c.Permitted, c.Inheritable = caps, slices.Clone(caps), slices.Clone(caps), nil
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
	for _, m := range s.Mounts {
		if m.Type == "sysfs" || m.Type == "cgroup" {
			for i, o := range m.Options {
				if o == "ro" {
					m.Options[i] = "rw"
				}
			}
		}
	}
	s.Process.SelinuxLabel, s.Process.ApparmorProfile, s.Linux.Seccomp = "", "", nil
}

// AddCapabilities adds caps to the bounding, effective and permitted sets.
func AddCapabilities(c *specs.LinuxCapabilities, caps ...string) {
	for _, set := range []*[]string{&c.Bounding, &c.Effective, &c.Permitted} {
		for _, name := range caps {
			if !slices.Contains(*set, name) {
				*set = append(*set, name)
			}
		}
	}
}

// DropCapabilities removes caps from every set but the ambient one.
func DropCapabilities(c *specs.LinuxCapabilities, caps ...string) {
	for _, set := range []*[]string{&c.Bounding, &c.Effective, &c.Permitted, &c.Inheritable} {
		*set = slices.DeleteFunc(*set, func(name string) bool { return slices.Contains(caps, name) })
	}
}

// SetNamespace replaces the namespace of ns's type, or adds it.
func SetNamespace(s *specs.Spec, ns specs.LinuxNamespace) {
	i := slices.IndexFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == ns.Type })
	if i < 0 {
		s.Linux.Namespaces = append(s.Linux.Namespaces, ns)
		return
	}
	s.Linux.Namespaces[i] = ns
}

// ShareHostNamespace takes the namespace of that type away, so that the
// container stays in the host's.
func ShareHostNamespace(s *specs.Spec, kind specs.LinuxNamespaceType) {
	s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
}

// SetRlimit replaces the limit of l's type, or adds it.
func SetRlimit(s *specs.Spec, l specs.POSIXRlimit) {
	i := slices.IndexFunc(s.Process.Rlimits, func(r specs.POSIXRlimit) bool { return r.Type == l.Type })
	if i < 0 {
		s.Process.Rlimits = append(s.Process.Rlimits, l)
		return
	}
	s.Process.Rlimits[i] = l
}
