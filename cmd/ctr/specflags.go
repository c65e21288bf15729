package main

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"berth/internal/spec"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v3"
)

// specFromFile reads a whole OCI spec.
func specFromFile(path string) (*specs.Spec, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the spec given with --config: %w", err)
	}
	var s specs.Spec
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("%s is not an OCI runtime spec (version %s) in JSON: %w", path, specs.Version, err)
	}
	return &s, nil
}

// specFromFlags is the part of a container's spec that the command line gives.
// It reads what flags point at (files, devices), but asks no daemon.
func specFromFlags(cmd *cli.Command, namespace, id string, args []string) (spec.Container, error) {
	c := spec.Container{
		Namespace: namespace, ID: id, Throttle: spec.ThrottlePaths(),
		Args: args, Cwd: cmd.String("cwd"), User: cmd.String("user"), Terminal: cmd.Bool("tty"),
		Hostname: cmd.String("hostname"), ReadonlyRootfs: cmd.Bool("read-only"),
		NewPrivileges: cmd.IsSet("allow-new-privs"), RootPropagation: cmd.String("rootfs-propagation"),
		RDTClass: cmd.String("rdt-class"),
		AddCaps:  cmd.StringSlice("cap-add"), DropCaps: cmd.StringSlice("cap-drop"),
		Resources: spec.Resources{
			CPUs: cmd.String("cpuset-cpus"), Mems: cmd.String("cpuset-mems"), Memory: cmd.Uint64("memory-limit"),
		},
		ExtraAnnotations: labelArgs(cmd.StringSlice("label")),
	}
	if cmd.IsSet("cgroup") { // empty means: none
		path := cmd.String("cgroup")
		c.CgroupsPath = &path
	}
	for _, set := range []func(*cli.Command, *spec.Container) error{
		setEnv, setMounts, setPrivileges, setSeccomp, setApparmor, setCPU, setBlockIO, setNamespaces, setDevices, setLimits, setAnnotations,
	} {
		if err := set(cmd, &c); err != nil {
			return c, err
		}
	}
	return c, nil
}

func setEnv(cmd *cli.Command, c *spec.Container) error {
	if path := cmd.String("env-file"); path != "" {
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("--env-file: %w", err)
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			c.Env = spec.MergeEnv(c.Env, []string{lines.Text()})
		}
		if err := lines.Err(); err != nil {
			return fmt.Errorf("reading %s: %w", path, err)
		}
	}
	c.Env = spec.MergeEnv(c.Env, cmd.StringSlice("env"))
	return nil
}

func setMounts(cmd *cli.Command, c *spec.Container) error {
	for _, flag := range cmd.StringSlice("mount") {
		m, err := parseMount(flag)
		if err != nil {
			return err
		}
		c.Mounts = append(c.Mounts, m)
	}
	return nil
}

// parseMount reads type=bind,src=/a,dst=/b,options=rbind:ro; a field that holds
// a comma is quoted as in CSV.
func parseMount(flag string) (specs.Mount, error) {
	var m specs.Mount
	fields, err := csv.NewReader(strings.NewReader(flag)).Read()
	if err != nil {
		return m, invalid("--mount %q cannot be read: %v", flag, err)
	}
	for _, field := range fields {
		key, value, ok := strings.Cut(field, "=")
		if !ok {
			return m, invalid("--mount %q: %q is not of the form key=value", flag, field)
		}
		switch key {
		case "type":
			m.Type = value
		case "source", "src":
			m.Source = value
		case "destination", "dst":
			m.Destination = value
		case "options":
			m.Options = strings.Split(value, ":")
		default:
			return m, invalid("--mount %q: there is no key %q, only type, source (src), destination (dst) and options", flag, key)
		}
	}
	return m, nil
}

func setPrivileges(cmd *cli.Command, c *spec.Container) (err error) {
	withoutDevices := cmd.Bool("privileged-without-host-devices")
	if !cmd.Bool("privileged") {
		if withoutDevices {
			return invalid("--privileged-without-host-devices needs --privileged")
		}
	} else {
		if c.Capabilities, err = spec.CurrentCapabilities(); err != nil {
			return err
		}
		if !withoutDevices {
			c.AllowAllDevices = true
			if c.HostDevices, err = spec.Devices("/dev"); err != nil {
				return fmt.Errorf("listing the host's devices: %w", err)
			}
		}
	}
	for _, flag := range []string{"cap-add", "cap-drop"} {
		for _, name := range cmd.StringSlice(flag) {
			if !strings.HasPrefix(name, "CAP_") {
				return invalid("--%s %s: capabilities are written with the prefix CAP_, such as CAP_NET_ADMIN", flag, name)
			}
		}
	}
	if c.HostNetwork = cmd.Bool("net-host"); c.HostNetwork {
		if c.HostNetworkName, err = os.Hostname(); err != nil {
			return fmt.Errorf("host name for --net-host: %w", err)
		}
	}
	return nil
}

func setSeccomp(cmd *cli.Command, c *spec.Container) error {
	path := cmd.String("seccomp-profile")
	switch {
	case !cmd.Bool("seccomp") && path != "":
		return invalid("--seccomp-profile needs --seccomp")
	case !cmd.Bool("seccomp"):
		return nil
	case path == "":
		c.Seccomp = spec.SeccompDefault
		return nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("--seccomp-profile: %w", err)
	}
	c.Seccomp = spec.SeccompProfile
	if c.SeccompProfile, err = spec.ParseSeccomp(b); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func setCPU(cmd *cli.Command, c *spec.Container) error {
	r := &c.Resources
	if shares := cmd.Int("cpu-shares"); shares > 0 {
		r.CPUShares = uint64(shares)
	}
	cpus := cmd.Float64("cpus")
	if cpus > 0 {
		quota, period := int64(cpus*100000), uint64(100000)
		r.CPUQuota, r.CPUPeriod = &quota, &period
	}
	quota, period := cmd.Int64("cpu-quota"), cmd.Uint64("cpu-period")
	if quota != -1 || period != 0 {
		if cpus > 0 {
			return invalid("--cpus and --cpu-quota or --cpu-period exclude each other")
		}
		r.CPUQuota, r.CPUPeriod = &quota, &period
	}
	return nil
}

func setNamespaces(cmd *cli.Command, c *spec.Container) (err error) {
	for _, flag := range cmd.StringSlice("with-ns") {
		kind, path, ok := strings.Cut(flag, ":")
		if !ok {
			return invalid("--with-ns %s is not of the form type:path", flag)
		}
		ns := specs.LinuxNamespace{Type: specs.LinuxNamespaceType(kind), Path: path}
		switch ns.Type {
		case specs.PIDNamespace, specs.NetworkNamespace, specs.UTSNamespace, specs.MountNamespace, specs.UserNamespace, specs.IPCNamespace, specs.CgroupNamespace:
		default:
			return invalid("--with-ns %s: there is no namespace %q, only pid, network, uts, mount, user, ipc and cgroup", flag, kind)
		}
		c.Namespaces = append(c.Namespaces, ns)
	}
	uids, gids := cmd.StringSlice("uidmap"), cmd.StringSlice("gidmap")
	if cmd.Bool("rootfs") || len(uids) == 0 || len(gids) == 0 {
		return nil
	}
	if c.UIDMap, err = parseIDMaps("uidmap", uids); err != nil {
		return err
	}
	c.GIDMap, err = parseIDMaps("gidmap", gids)
	return err
}

func parseIDMaps(flag string, values []string) ([]specs.LinuxIDMapping, error) {
	var out []specs.LinuxIDMapping
	for _, value := range values {
		parts := strings.Split(value, ":")
		if len(parts) != 3 {
			return nil, invalid("--%s %s is not of the form container-id:host-id:length", flag, value)
		}
		var n [3]uint32
		for i, part := range parts {
			v, err := strconv.ParseUint(part, 0, 32)
			if err != nil {
				return nil, invalid("--%s %s: %q is not a number below 2^32", flag, value, part)
			}
			n[i] = uint32(v)
		}
		out = append(out, specs.LinuxIDMapping{ContainerID: n[0], HostID: n[1], Size: n[2]})
	}
	return out, nil
}

func setDevices(cmd *cli.Command, c *spec.Container) (err error) {
	for _, path := range cmd.StringSlice("device") {
		if spec.IsCDI(path) {
			c.CDIDevices = append(c.CDIDevices, path)
			continue
		}
		devs, err := spec.Devices(path)
		if err != nil {
			return fmt.Errorf("--device: %w", err)
		}
		c.Devices = append(c.Devices, devs...)
	}
	gpus := cmd.IntSlice("gpus")
	if len(c.CDIDevices) == 0 && len(gpus) == 0 {
		return nil
	}
	if c.CDI, err = spec.OpenInventory(); err != nil || len(gpus) == 0 {
		return err
	}
	names, err := c.CDI.GPUs(gpus...)
	if err != nil {
		return fmt.Errorf("--gpus: %w", err)
	}
	c.CDIDevices = append(c.CDIDevices, names...)
	return nil
}

func setBlockIO(cmd *cli.Command, c *spec.Container) (err error) {
	file, class := cmd.String("blockio-config-file"), cmd.String("blockio-class")
	var classes spec.BlockIOClasses
	if file != "" {
		if classes, err = spec.ReadBlockIO(file); err != nil {
			return fmt.Errorf("--blockio-config-file: %w", err)
		}
	}
	if class == "" {
		return nil
	}
	if file == "" {
		return invalid("--blockio-class %s needs --blockio-config-file, which defines the classes", class)
	}
	c.Resources.BlockIO, err = classes.Class(class)
	return err
}

func setApparmor(cmd *cli.Command, c *spec.Container) error {
	c.ApparmorProfile = cmd.String("apparmor-profile")
	name := cmd.String("apparmor-default-profile")
	if name == "" {
		return nil
	}
	if c.ApparmorProfile != "" {
		return invalid("--apparmor-profile and --apparmor-default-profile exclude each other")
	}
	c.ApparmorProfile = name
	return spec.LoadApparmor(name)
}

func setLimits(cmd *cli.Command, c *spec.Container) error {
	flag := cmd.String("rlimit-nofile")
	if flag == "" {
		return nil
	}
	softText, hardText, ok := strings.Cut(flag, ":")
	if !ok {
		hardText = softText
	}
	soft, err1 := strconv.ParseUint(softText, 10, 64)
	hard, err2 := strconv.ParseUint(hardText, 10, 64)
	if err1 != nil || err2 != nil {
		return invalid("--rlimit-nofile %s is not of the form soft:hard", flag)
	}
	c.NoFile = &specs.POSIXRlimit{Type: "RLIMIT_NOFILE", Soft: soft, Hard: hard}
	return nil
}

func setAnnotations(cmd *cli.Command, c *spec.Container) error {
	c.Annotations = map[string]string{}
	for _, flag := range cmd.StringSlice("annotation") {
		key, value, ok := strings.Cut(flag, "=")
		if !ok {
			return invalid("--annotation %s is not of the form key=value", flag)
		}
		c.Annotations[key] = value
	}
	return nil
}
