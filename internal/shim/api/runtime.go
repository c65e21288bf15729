package api

import "google.golang.org/protobuf/reflect/protoreflect"

// Options are containerd.runc.v1.Options. The JSON form is that of options.json in a bundle.
type Options struct {
	NoPivotRoot    bool   `json:"no_pivot_root,omitempty"`
	NoNewKeyring   bool   `json:"no_new_keyring,omitempty"`
	ShimCgroup     string `json:"shim_cgroup,omitempty"`
	IoUid          uint32 `json:"io_uid,omitempty"`
	IoGid          uint32 `json:"io_gid,omitempty"`
	BinaryName     string `json:"binary_name,omitempty"`
	Root           string `json:"root,omitempty"`
	SystemdCgroup  bool   `json:"systemd_cgroup,omitempty"`
	CriuImagePath  string `json:"criu_image_path,omitempty"`
	CriuWorkPath   string `json:"criu_work_path,omitempty"`
	TaskApiAddress string `json:"task_api_address,omitempty"`
	TaskApiVersion uint32 `json:"task_api_version,omitempty"`
}

// CheckpointOptions are containerd.runc.v1.CheckpointOptions.
type CheckpointOptions struct {
	Exit, OpenTcp, ExternalUnixSockets, Terminal, FileLocks bool
	EmptyNamespaces                                         []string
	CgroupsMode, ImagePath, WorkPath, ParentPath            string
}

// ProcessDetails is containerd.runc.v1.ProcessDetails.
type ProcessDetails struct {
	ExecID string
}

// RuntimeInfo is what a shim tells of itself (containerd.types).
type RuntimeInfo struct {
	Name              string
	Version           *RuntimeVersion
	Options, Features *Any
	Annotations       map[string]string
}

type RuntimeVersion struct {
	Version, Revision string
}

func (m *Options) fields() []field {
	return []field{{1, &m.NoPivotRoot}, {2, &m.NoNewKeyring}, {3, &m.ShimCgroup}, {4, &m.IoUid}, {5, &m.IoGid}, {6, &m.BinaryName}, {7, &m.Root}, {9, &m.SystemdCgroup}, {10, &m.CriuImagePath}, {11, &m.CriuWorkPath}, {12, &m.TaskApiAddress}, {13, &m.TaskApiVersion}}
}

func (m *CheckpointOptions) fields() []field {
	return []field{{1, &m.Exit}, {2, &m.OpenTcp}, {3, &m.ExternalUnixSockets}, {4, &m.Terminal}, {5, &m.FileLocks}, {6, &m.EmptyNamespaces}, {7, &m.CgroupsMode}, {8, &m.ImagePath}, {9, &m.WorkPath}, {10, &m.ParentPath}}
}

func (m *ProcessDetails) fields() []field {
	return []field{{1, &m.ExecID}}
}

func (m *RuntimeInfo) fields() []field {
	return []field{{1, &m.Name}, {2, one(&m.Version)}, {3, one(&m.Options)}, {4, one(&m.Features)}, {5, &m.Annotations}}
}

func (m *RuntimeVersion) fields() []field {
	return []field{{1, &m.Version}, {2, &m.Revision}}
}

func (m *Options) ProtoReflect() protoreflect.Message           { return reflection{m: m} }
func (m *Options) Reset()                                       { *m = Options{} }
func (m *CheckpointOptions) ProtoReflect() protoreflect.Message { return reflection{m: m} }
func (m *CheckpointOptions) Reset()                             { *m = CheckpointOptions{} }
func (m *ProcessDetails) ProtoReflect() protoreflect.Message    { return reflection{m: m} }
func (m *ProcessDetails) Reset()                                { *m = ProcessDetails{} }
func (m *RuntimeInfo) ProtoReflect() protoreflect.Message       { return reflection{m: m} }
func (m *RuntimeInfo) Reset()                                   { *m = RuntimeInfo{} }
func (m *RuntimeVersion) ProtoReflect() protoreflect.Message    { return reflection{m: m} }
func (m *RuntimeVersion) Reset()                                { *m = RuntimeVersion{} }

// OptionsName is the type URL of Options.
const OptionsName = "containerd.runc.v1.Options"

// ProcessDetailsName is the type URL of ProcessDetails.
const ProcessDetailsName = "containerd.runc.v1.ProcessDetails"
