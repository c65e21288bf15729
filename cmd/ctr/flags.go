package main

import (
	"slices"
	"strings"

	"berth/cmd/ctr/output"

	"github.com/urfave/cli/v3"
)

// defaultRuntime is the shim that runs containers unless asked otherwise.
const defaultRuntime = "io.containerd.runc.v2"

func snapshotterFlag() cli.Flag {
	return &cli.StringFlag{Name: "snapshotter", Usage: "Snapshotter name. Empty value stands for the default value.", Sources: cli.EnvVars("CONTAINERD_SNAPSHOTTER")}
}

func labelFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "label", Usage: "Labels to attach to the image"}
}

func quietFlag(usage string) cli.Flag {
	return &cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: usage}
}

func formatFlag() cli.Flag {
	return &cli.StringFlag{Name: "format", Usage: "table, json, or a Go template for each row, such as '{{.ID}}'"}
}

func allNamespacesFlag() cli.Flag {
	return &cli.BoolFlag{Name: "all-namespaces", Aliases: []string{"A"}, Usage: "Look at every namespace"}
}

func runtimeFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "runtime", Usage: "Runtime name or absolute path to runtime binary", Value: defaultRuntime},
		&cli.StringFlag{Name: "runtime-config-path", Usage: "Optional runtime config path"},
		&cli.StringFlag{Name: "runc-binary", Usage: "Specify runc-compatible binary"},
		&cli.StringFlag{Name: "runc-root", Usage: "Specify runc-compatible root"},
		&cli.BoolFlag{Name: "runc-systemd-cgroup", Usage: "Start runc with systemd cgroup manager"},
	}
}

// createFlags are those of run and of containers create.
func createFlags() []cli.Flag {
	return slices.Concat(runtimeFlags(), []cli.Flag{
		snapshotterFlag(),
		&cli.StringSliceFlag{Name: "snapshotter-label", Usage: "Labels added to the new snapshot for this container."},
		&cli.StringFlag{Name: "config", Aliases: []string{"c"}, Usage: "Path to the runtime-specific spec config file"},
		&cli.StringFlag{Name: "cwd", Usage: "Specify the working directory of the process"},
		&cli.StringSliceFlag{Name: "env", Usage: "Specify additional container environment variables (e.g. FOO=bar)"},
		&cli.StringFlag{Name: "env-file", Usage: "Specify additional container environment variables in a file(e.g. FOO=bar, one per line)"},
		&cli.StringSliceFlag{Name: "label", Usage: "Specify additional labels (e.g. foo=bar)"},
		&cli.StringSliceFlag{Name: "annotation", Usage: "Specify additional OCI annotations (e.g. foo=bar)"},
		&cli.StringSliceFlag{Name: "mount", Usage: "Specify additional container mount (e.g. type=bind,src=/tmp,dst=/host,options=rbind:ro)"},
		&cli.BoolFlag{Name: "net-host", Usage: "Enable host networking for the container"},
		&cli.BoolFlag{Name: "privileged", Usage: "Run privileged container"},
		&cli.BoolFlag{Name: "read-only", Usage: "Set the containers filesystem as readonly"},
		&cli.StringFlag{Name: "sandbox", Usage: "Create the container in the given sandbox"},
		&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "Allocate a TTY for the container"},
		&cli.StringSliceFlag{Name: "with-ns", Usage: "Specify existing Linux namespaces to join at container runtime (format '<nstype>:<path>')"},
		&cli.StringFlag{Name: "pid-file", Usage: "File path to write the task's pid"},
		&cli.IntSliceFlag{Name: "gpus", Usage: "Add gpus to the container"},
		&cli.BoolFlag{Name: "allow-new-privs", Usage: "Turn off OCI spec's NoNewPrivileges feature flag"},
		&cli.Uint64Flag{Name: "memory-limit", Usage: "Memory limit (in bytes) for the container"},
		&cli.StringSliceFlag{Name: "cap-add", Usage: "Add Linux capabilities (Set capabilities with 'CAP_' prefix)"},
		&cli.StringSliceFlag{Name: "cap-drop", Usage: "Drop Linux capabilities (Set capabilities with 'CAP_' prefix)"},
		&cli.BoolFlag{Name: "seccomp", Usage: "Enable the default seccomp profile"},
		&cli.StringFlag{Name: "seccomp-profile", Usage: "File path to custom seccomp profile. seccomp must be set to true, before using seccomp-profile"},
		&cli.StringFlag{Name: "apparmor-default-profile", Usage: "Enable AppArmor with the default profile with the specified name, e.g. \"cri-containerd.apparmor.d\""},
		&cli.StringFlag{Name: "apparmor-profile", Usage: "Enable AppArmor with an existing custom profile"},
		&cli.StringFlag{Name: "blockio-config-file", Usage: "File path to blockio class definitions. By default class definitions are not loaded."},
		&cli.StringFlag{Name: "blockio-class", Usage: "Name of the blockio class to associate the container with"},
		&cli.StringFlag{Name: "rdt-class", Usage: "Name of the RDT class to associate the container with. Specifies a Class of Service (CLOS) for cache and memory bandwidth management."},
		&cli.StringFlag{Name: "hostname", Usage: "Set the container's host name"},
		&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "Username or user id, group optional (format: <name|uid>[:<group|gid>])"},
		&cli.BoolFlag{Name: "rootfs", Usage: "Use custom rootfs that is not managed by containerd snapshotter"},
		&cli.BoolFlag{Name: "no-pivot", Usage: "Disable use of pivot-root (linux only)"},
		&cli.Int64Flag{Name: "cpu-quota", Usage: "Limit CPU CFS quota", Value: -1},
		&cli.Uint64Flag{Name: "cpu-period", Usage: "Limit CPU CFS period"},
		&cli.StringFlag{Name: "rootfs-propagation", Usage: "Set the propagation of the container rootfs"},
		&cli.StringSliceFlag{Name: "device", Usage: "File path to a device to add to the container; or a path to a directory tree of devices to add to the container"},
	})
}

// runFlags are those that run has before createFlags.
func runFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "rm", Usage: "Remove the container after running, cannot be used with --detach"},
		&cli.BoolFlag{Name: "null-io", Usage: "Send all IO to /dev/null"},
		&cli.StringFlag{Name: "log-uri", Usage: "Log uri"},
		&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "Detach from the task after it has started execution, cannot be used with --rm"},
		&cli.StringFlag{Name: "fifo-dir", Usage: "Directory used for storing IO FIFOs"},
		&cli.StringFlag{Name: "cgroup", Usage: "Cgroup path (To disable use of cgroup, set to \"\" explicitly)"},
		&cli.StringFlag{Name: "platform", Usage: "Run image for specific platform"},
		&cli.BoolFlag{Name: "cni", Usage: "Enable cni networking for the container"},
		&cli.BoolFlag{Name: "sync-fs", Usage: "Synchronize the underlying filesystem containing files when unpack images, false by default"},
		&cli.StringFlag{Name: "dump-config", Usage: "Dump the generated OCI config to a file"},
		&cli.StringSliceFlag{Name: "uidmap", Usage: "Run inside a user namespace with the specified UID mapping ranges; specified with the format container-uid:host-uid:length"},
		&cli.StringSliceFlag{Name: "gidmap", Usage: "Run inside a user namespace with the specified GID mapping ranges; specified with the format container-gid:host-gid:length"},
		&cli.BoolFlag{Name: "remap-labels", Usage: "Provide the user namespace ID remapping to the snapshotter via label options; requires snapshotter support"},
		&cli.BoolFlag{Name: "privileged-without-host-devices", Usage: "Don't pass all host devices to privileged container"},
		&cli.Float64Flag{Name: "cpus", Usage: "Set the CFS cpu quota"},
		&cli.IntFlag{Name: "cpu-shares", Usage: "Set the cpu shares", Value: 1024},
		&cli.StringFlag{Name: "cpuset-cpus", Usage: "Set the CPUs the container will run in (e.g., 1-2,4)"},
		&cli.StringFlag{Name: "cpuset-mems", Usage: "Set the memory nodes the container will run in (e.g., 1-2,4)"},
		&cli.StringFlag{Name: "rlimit-nofile", Usage: "Set RLIMIT_NOFILE (soft:hard)"},
	}
}

// labelArgs reads key=value; a key alone is true.
func labelArgs(args []string) map[string]string {
	labels := make(map[string]string, len(args))
	for _, arg := range args {
		key, value, ok := strings.Cut(arg, "=")
		if !ok {
			value = "true"
		}
		labels[key] = value
	}
	return labels
}

// noArgs is an error about an argument that a command does not take.
func noArgs(cmd *cli.Command) error {
	if !cmd.Args().Present() {
		return nil
	}
	return invalid("%s takes no arguments, not %q; see '%s --help'", cmd.FullName(), cmd.Args().First(), cmd.FullName())
}

// anyArgs tells whether there is something to do for a command that takes any
// number of things. None is no failure: scripts hand on lists that may be empty.
func anyArgs(cmd *cli.Command, name string) bool {
	if !cmd.Args().Present() {
		output.Warn("there is nothing to do: no %s is given; usage: %s %s", name, cmd.FullName(), cmd.ArgsUsage)
	}
	return cmd.Args().Present()
}

// needArgs is an error that names the first missing argument.
func needArgs(cmd *cli.Command, names ...string) error {
	if n := cmd.NArg(); n < len(names) {
		return invalid("%s must be provided; usage: %s %s", names[n], cmd.FullName(), cmd.ArgsUsage)
	}
	for i, name := range names {
		if cmd.Args().Get(i) == "" {
			return invalid("%s must not be empty", name)
		}
	}
	return nil
}
