package spec

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"
	ispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Container is what a container's spec is built from. The zero value of a field
// leaves the default alone.
type Container struct {
	Namespace, ID string
	// Throttle are the paths of ThrottlePaths.
	Throttle []string

	// Image is the configuration that supplies environment, arguments, directory
	// and user; nil for a root filesystem without one.
	Image *ispec.ImageConfig
	// Rootfs is where users are looked up; needed with Image or User.
	Rootfs *Rootfs
	// RootPath is the absolute path of the root filesystem, empty for the
	// bundle's own.
	RootPath       string
	ReadonlyRootfs bool

	Args []string // replace the image's arguments
	Env  []string // see MergeEnv
	Cwd  string
	// User as LookupUser takes it, instead of the image's.
	User            string
	Terminal        bool
	Hostname        string
	NewPrivileges   bool
	NoFile          *specs.POSIXRlimit
	ApparmorProfile string

	// Capabilities, when not nil, make the container privileged with these.
	Capabilities     []string
	AddCaps          []string
	DropCaps         []string
	AllowAllDevices  bool
	HostDevices      []specs.LinuxDevice // nodes without a rule of their own
	Devices          []specs.LinuxDevice // with full access
	CDI              Inventory
	CDIDevices       []string // of CDI
	Seccomp          SeccompMode
	SeccompProfile   *specs.LinuxSeccomp
	Mounts           []specs.Mount
	Namespaces       []specs.LinuxNamespace
	UIDMap, GIDMap   []specs.LinuxIDMapping
	HostNetwork      bool
	HostNetworkName  string // the host's name, for HOSTNAME when HostNetwork is set
	CgroupsPath      *string
	RootPropagation  string
	Resources        Resources
	RDTClass         string
	Annotations      map[string]string
	ExtraAnnotations map[string]string // win over Annotations
}

// SeccompMode says which filter applies.
type SeccompMode uint8

const (
	SeccompNone    SeccompMode = iota
	SeccompDefault             // DefaultSeccomp
	SeccompProfile             // Container.SeccompProfile
)

// Resources limit a container. Zero values are no limits.
type Resources struct {
	CPUShares  uint64
	CPUQuota   *int64  // microseconds of each period
	CPUPeriod  *uint64 // microseconds
	CPUs, Mems string  // lists such as 0-2,4
	Memory     uint64  // bytes
	BlockIO    *specs.LinuxBlockIO
}

// defaultPath is for images that set no environment at all.
const defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Build makes the spec of c. Errors are those of LookupUser, DefaultSeccomp and
// Inventory.
func Build(c Container) (*specs.Spec, error) {
	s := Default(c.Namespace, c.ID, c.Throttle)
	s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, DefaultDeviceRules()...)
	s.Mounts = append(s.Mounts, c.Mounts...)
	if c.RootPath != "" {
		s.Root.Path = c.RootPath
	}
	s.Root.Readonly = c.ReadonlyRootfs
	if err := c.process(s); err != nil {
		return nil, err
	}
	c.isolation(s)
	if err := c.security(s); err != nil {
		return nil, err
	}
	c.limits(s)
	if len(c.CDIDevices) > 0 {
		if err := c.CDI.inject(s, c.CDIDevices); err != nil {
			return nil, err
		}
	}
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	maps.Copy(s.Annotations, c.Annotations)
	maps.Copy(s.Annotations, c.ExtraAnnotations)
	return s, nil
}

func (c Container) process(s *specs.Spec) error {
	p := s.Process
	p.Env = MergeEnv(nil, c.Env)
	if img := c.Image; img != nil {
		base := img.Env
		if len(base) == 0 {
			base = []string{defaultPath}
		}
		p.Env = MergeEnv(base, p.Env)
		p.Args = append(slices.Clone(img.Entrypoint), img.Cmd...)
		if img.WorkingDir != "" {
			p.Cwd = img.WorkingDir
		}
	}
	if len(c.Args) > 0 {
		p.Args = c.Args
	}
	if c.Cwd != "" {
		p.Cwd = c.Cwd
	}
	if err := c.user(s); err != nil {
		return err
	}
	if c.Terminal {
		p.Terminal = true
		p.Env = append(p.Env, "TERM=xterm")
	}
	if c.HostNetwork {
		p.Env = MergeEnv(p.Env, []string{"HOSTNAME=" + c.HostNetworkName})
	}
	p.NoNewPrivileges = !c.NewPrivileges
	if c.NoFile != nil {
		SetRlimit(s, *c.NoFile)
	}
	s.Hostname = c.Hostname
	return nil
}

func (c Container) user(s *specs.Spec) (err error) {
	u := &s.Process.User
	switch {
	case c.User != "":
		if *u, err = LookupUser(c.Rootfs, c.User); err != nil {
			return err
		}
		// Compat: the whole string is the member that is looked for, so that
		// user:group finds no additional groups.
		return AdditionalGroups(c.Rootfs, u, c.User)
	case c.Image == nil:
		return nil
	case c.Image.User != "":
		if *u, err = LookupUser(c.Rootfs, c.Image.User); err != nil {
			return fmt.Errorf("the image's user: %w", err)
		}
		return AdditionalGroups(c.Rootfs, u, strconv.FormatUint(uint64(u.UID), 10))
	}
	return AdditionalGroups(c.Rootfs, u, "root")
}

func (c Container) isolation(s *specs.Spec) {
	if c.UIDMap != nil || c.GIDMap != nil {
		SetNamespace(s, specs.LinuxNamespace{Type: specs.UserNamespace})
		s.Linux.UIDMappings, s.Linux.GIDMappings = c.UIDMap, c.GIDMap
	}
	if c.HostNetwork {
		ShareHostNamespace(s, specs.NetworkNamespace)
		for _, file := range []string{"/etc/hosts", "/etc/resolv.conf"} {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: file, Type: "bind", Source: file, Options: []string{"rbind", "ro"}})
		}
	}
	for _, ns := range c.Namespaces {
		SetNamespace(s, ns)
	}
	if c.CgroupsPath != nil {
		s.Linux.CgroupsPath = *c.CgroupsPath
	}
	s.Linux.RootfsPropagation = c.RootPropagation
}

func (c Container) security(s *specs.Spec) (err error) {
	if c.Capabilities != nil {
		MakePrivileged(s, c.Capabilities)
	}
	if c.AllowAllDevices {
		s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: rwm}}
	}
	s.Linux.Devices = append(s.Linux.Devices, c.HostDevices...)
	AllowDevices(s, rwm, c.Devices...)
	AddCapabilities(s.Process.Capabilities, c.AddCaps...)
	DropCapabilities(s.Process.Capabilities, c.DropCaps...)
	if c.ApparmorProfile != "" {
		s.Process.ApparmorProfile = c.ApparmorProfile
	}
	switch c.Seccomp {
	case SeccompDefault:
		if s.Linux.Seccomp, err = DefaultSeccomp(s); err != nil {
			return fmt.Errorf("default seccomp profile: %w", err)
		}
	case SeccompProfile:
		if c.SeccompProfile == nil {
			return fmt.Errorf("no seccomp profile is given: %w", errdefs.ErrInvalidArgument)
		}
		s.Linux.Seccomp = c.SeccompProfile
	}
	return nil
}

func (c Container) limits(s *specs.Spec) {
	r, want := s.Linux.Resources, c.Resources
	cpu := specs.LinuxCPU{Quota: want.CPUQuota, Period: want.CPUPeriod, Cpus: want.CPUs, Mems: want.Mems}
	if want.CPUShares > 0 {
		cpu.Shares = &want.CPUShares
	}
	if cpu != (specs.LinuxCPU{}) {
		r.CPU = &cpu
	}
	if want.Memory > 0 {
		limit := int64(want.Memory)
		r.Memory = &specs.LinuxMemory{Limit: &limit}
	}
	if want.BlockIO != nil {
		r.BlockIO = want.BlockIO
	}
	if c.RDTClass != "" {
		s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: c.RDTClass}
	}
}
