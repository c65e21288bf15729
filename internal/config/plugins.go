package config

// Plugins are the tables of the parts of the daemon, under containerd's names
// and in their order.
type Plugins struct {
	GC           GC           `toml:"io.containerd.gc.v1.scheduler"`
	Opt          Opt          `toml:"io.containerd.internal.v1.opt"`
	Bolt         Bolt         `toml:"io.containerd.metadata.v1.bolt"`
	Task         Task         `toml:"io.containerd.runtime.v2.task"`
	DebugServer  DebugServer  `toml:"io.containerd.server.v1.debug"`
	GRPC         GRPC         `toml:"io.containerd.server.v1.grpc"`
	GRPCTCP      GRPCTCP      `toml:"io.containerd.server.v1.grpc-tcp"`
	MetricServer MetricServer `toml:"io.containerd.server.v1.metrics"`
	TTRPC        TTRPC        `toml:"io.containerd.server.v1.ttrpc"`
	Diff         Diff         `toml:"io.containerd.service.v1.diff-service"`
	ShimManager  ShimManager  `toml:"io.containerd.shim.v1.manager"`
	Blockfile    Blockfile    `toml:"io.containerd.snapshotter.v1.blockfile"`
	Btrfs        *Btrfs       `toml:"io.containerd.snapshotter.v1.btrfs,omitempty"`
	Erofs        Erofs        `toml:"io.containerd.snapshotter.v1.erofs"`
	ErofsDiffer  ErofsDiffer  `toml:"io.containerd.differ.v1.erofs"`
	Native       Native       `toml:"io.containerd.snapshotter.v1.native"`
	Overlay      Overlay      `toml:"io.containerd.snapshotter.v1.overlayfs"`
	Transfer     Transfer     `toml:"io.containerd.transfer.v1.local"`
	Verifier     Verifier     `toml:"io.containerd.image-verifier.v1.bindir"`

	later
	short
}

// GC is when garbage is collected.
type GC struct {
	// PauseThreshold is the part of the time that collections may hold up others.
	PauseThreshold float64 `toml:"pause_threshold"`
	// DeletionThreshold is how many deletions, MutationThreshold how many other
	// changes after a deletion, bring a collection about; 0 turns each off.
	DeletionThreshold int `toml:"deletion_threshold"`
	MutationThreshold int `toml:"mutation_threshold"`
	// ScheduleDelay is how long a collection that is due waits for more.
	ScheduleDelay Duration `toml:"schedule_delay"`
	// StartupDelay is how long after the start the first one runs.
	StartupDelay Duration `toml:"startup_delay"`
}

// Opt is a directory of programs that are put on the PATH of shims.
type Opt struct {
	Path string `toml:"path"`
}

// How namespaces share blobs.
const (
	// SharingShared lets a namespace use a blob of another by its digest.
	SharingShared = "shared"
	// SharingIsolated makes it prove first that it has the bytes.
	SharingIsolated = "isolated"
)

// Bolt is the metadata database.
type Bolt struct {
	ContentSharingPolicy string `toml:"content_sharing_policy"`
	// NoSync trades durability for speed.
	NoSync bool `toml:"no_sync"`
}

// Task is what runs containers.
type Task struct {
	Platforms []string `toml:"platforms"`
	// SchedCore isolates containers from each other on a CPU core's threads.
	SchedCore bool `toml:"sched_core,omitempty"`
}

// ShimManager is how shims are started.
type ShimManager struct {
	// Env is added to their environment, "KEY=value".
	Env       []string `toml:"env"`
	SocketDir string   `toml:"socket_dir"`
	SchedCore bool     `toml:"sched_core,omitempty"`
}

// DebugServer is the socket of pprof; none when the address is empty.
type DebugServer struct {
	Address string `toml:"address"`
	UID     int    `toml:"uid"`
	GID     int    `toml:"gid"`
}

// GRPC is the socket of the API. Sizes are in bytes.
type GRPC struct {
	Address        string `toml:"address"`
	UID            int    `toml:"uid"`
	GID            int    `toml:"gid"`
	MaxRecvMsgSize int    `toml:"max_recv_message_size"`
	MaxSendMsgSize int    `toml:"max_send_message_size"`
}

// GRPCTCP is the API on a TCP address; none when that is empty.
type GRPCTCP struct {
	Address        string `toml:"address"`
	TLSCA          string `toml:"tls_ca"`
	TLSCert        string `toml:"tls_cert"`
	TLSKey         string `toml:"tls_key"`
	TLSName        string `toml:"tls_common_name"`
	MaxRecvMsgSize int    `toml:"max_recv_message_size"`
	MaxSendMsgSize int    `toml:"max_send_message_size"`
}

// MetricServer is the TCP address of the metrics; none when it is empty.
type MetricServer struct {
	Address string `toml:"address"`
}

// TTRPC is the socket for shims' events.
type TTRPC struct {
	Address string `toml:"address"`
	UID     int    `toml:"uid"`
	GID     int    `toml:"gid"`
}

// Diff is the service that applies layers for clients.
type Diff struct {
	Order []string `toml:"default"`
	// SyncFs makes every apply durable before it returns.
	SyncFs bool `toml:"sync_fs"`
}

// ErofsDiffer writes layers as EROFS images.
type ErofsDiffer struct {
	MkfsOptions    []string `toml:"mkfs_options"`
	EnableTarIndex bool     `toml:"enable_tar_index"`
	EnableDmverity bool     `toml:"enable_dmverity"`
}

// Blockfile is the snapshotter whose snapshots are filesystem images.
type Blockfile struct {
	RootPath        string   `toml:"root_path"`
	ScratchFile     string   `toml:"scratch_file"`
	FSType          string   `toml:"fs_type"`
	MountOptions    []string `toml:"mount_options"`
	RecreateScratch bool     `toml:"recreate_scratch"`
}

// Btrfs is the snapshotter on a btrfs filesystem.
type Btrfs struct {
	RootPath string `toml:"root_path"`
}

// Erofs is the snapshotter whose layers are EROFS images.
type Erofs struct {
	RootPath           string   `toml:"root_path"`
	OvlOptions         []string `toml:"ovl_mount_options"`
	EnableFsverity     bool     `toml:"enable_fsverity"`
	SetImmutable       bool     `toml:"set_immutable"`
	DefaultSize        string   `toml:"default_size"`
	DmverityMode       string   `toml:"dmverity_mode"`
	LayerContentCaches []string `toml:"layer_content_caches"`
}

// Native is the copying snapshotter.
type Native struct {
	// RootPath replaces <root>/io.containerd.snapshotter.v1.native.
	RootPath string `toml:"root_path"`
}

// Overlay is the overlayfs snapshotter.
type Overlay struct {
	RootPath      string   `toml:"root_path"`
	UpperdirLabel bool     `toml:"upperdir_label"`
	SyncRemove    bool     `toml:"sync_remove"`
	SlowChown     bool     `toml:"slow_chown"`
	MountOptions  []string `toml:"mount_options"`
}

// Transfer is the service that pulls, pushes, imports and exports. A bound of
// 0, the default, is chosen by the number of cores.
//
// Differs from containerd: there the defaults are 3 downloads and 1 unpack.
type Transfer struct {
	MaxConcurrentDownloads      int  `toml:"max_concurrent_downloads"`
	ConcurrentLayerFetchBuffer  int  `toml:"concurrent_layer_fetch_buffer"`
	MaxConcurrentUploadedLayers int  `toml:"max_concurrent_uploaded_layers"`
	CheckPlatformSupported      bool `toml:"check_platform_supported"`
	// ConfigPath is the directory of hosts.toml files.
	ConfigPath           string   `toml:"config_path"`
	MaxConcurrentUnpacks int      `toml:"max_concurrent_unpacks"`
	Unpack               []Unpack `toml:"unpack_config,omitempty"`
}

// Verifier runs the programs of a directory before an image is pulled.
type Verifier struct {
	BinDir             string   `toml:"bin_dir"`
	MaxVerifiers       int      `toml:"max_verifiers"`
	PerVerifierTimeout Duration `toml:"per_verifier_timeout"`
}

// Unpack says which snapshotter takes a platform's images.
type Unpack struct {
	Platform    string   `toml:"platform"`
	Snapshotter string   `toml:"snapshotter"`
	Differ      string   `toml:"differ,omitempty"`
	ConfigType  string   `toml:"config_type,omitempty"`
	LayerTypes  []string `toml:"layer_types,omitempty"`
	Optional    bool     `toml:"optional,omitempty"`
}

// later are tables of containerd's that are accepted as they are: what they
// configure is not a part of this daemon.
type later struct {
	CRIImages      map[string]any `toml:"io.containerd.cri.v1.images,omitempty"`
	CRIRuntime     map[string]any `toml:"io.containerd.cri.v1.runtime,omitempty"`
	CRI            map[string]any `toml:"io.containerd.grpc.v1.cri,omitempty"`
	Restart        map[string]any `toml:"io.containerd.monitor.container.v1.restart,omitempty"`
	OldRestart     map[string]any `toml:"io.containerd.internal.v1.restart,omitempty"`
	Tracing        map[string]any `toml:"io.containerd.internal.v1.tracing,omitempty"`
	OTLP           map[string]any `toml:"io.containerd.tracing.processor.v1.otlp,omitempty"`
	GRPCPrometheus map[string]any `toml:"io.containerd.metrics.v1.grpc-prometheus,omitempty"`
	Cgroups        map[string]any `toml:"io.containerd.monitor.task.v1.cgroups,omitempty"`
	OldCgroups     map[string]any `toml:"io.containerd.monitor.v1.cgroups,omitempty"`
	ErofsMounts    map[string]any `toml:"io.containerd.mount-handler.v1.erofs,omitempty"`
	NRI            map[string]any `toml:"io.containerd.nri.v1.nri,omitempty"`
	OldRuntime     map[string]any `toml:"io.containerd.runtime.v1.linux,omitempty"`
	TasksService   map[string]any `toml:"io.containerd.service.v1.tasks-service,omitempty"`
	Aufs           map[string]any `toml:"io.containerd.snapshotter.v1.aufs,omitempty"`
	Devmapper      map[string]any `toml:"io.containerd.snapshotter.v1.devmapper,omitempty"`
	ZFS            map[string]any `toml:"io.containerd.snapshotter.v1.zfs,omitempty"`
}

// short are the names that tables had in version 1; nil once a file is read.
type short struct {
	ShortGC      *GC            `toml:"scheduler,omitempty"`
	ShortOpt     *Opt           `toml:"opt,omitempty"`
	ShortBolt    *Bolt          `toml:"bolt,omitempty"`
	ShortTask    *Task          `toml:"task,omitempty"`
	ShortDiff    *Diff          `toml:"diff-service,omitempty"`
	ShortNative  *Native        `toml:"native,omitempty"`
	ShortOverlay *Overlay       `toml:"overlayfs,omitempty"`
	ShortCRI     map[string]any `toml:"cri,omitempty"`
	ShortLinux   map[string]any `toml:"linux,omitempty"`
	ShortCgroups map[string]any `toml:"cgroups,omitempty"`
	ShortRestart map[string]any `toml:"restart,omitempty"`
}

// shortNames are the full names for the plugin lists of version 1.
var shortNames = []struct{ short, full string }{
	{"cri", "io.containerd.grpc.v1.cri"},
	{"cgroups", "io.containerd.monitor.v1.cgroups"},
	{"linux", "io.containerd.runtime.v1.linux"},
	{"scheduler", "io.containerd.gc.v1.scheduler"},
	{"bolt", "io.containerd.metadata.v1.bolt"},
	{"task", "io.containerd.runtime.v2.task"},
	{"opt", "io.containerd.internal.v1.opt"},
	{"restart", "io.containerd.internal.v1.restart"},
	{"tracing", "io.containerd.internal.v1.tracing"},
	{"otlp", "io.containerd.tracing.processor.v1.otlp"},
	{"aufs", "io.containerd.snapshotter.v1.aufs"},
	{"btrfs", "io.containerd.snapshotter.v1.btrfs"},
	{"devmapper", "io.containerd.snapshotter.v1.devmapper"},
	{"native", "io.containerd.snapshotter.v1.native"},
	{"overlayfs", "io.containerd.snapshotter.v1.overlayfs"},
	{"zfs", "io.containerd.snapshotter.v1.zfs"},
}

func (p *Plugins) check() error {
	switch p.Bolt.ContentSharingPolicy {
	case "", SharingShared, SharingIsolated:
	default:
		return invalid("content_sharing_policy", "%q is neither %q nor %q", p.Bolt.ContentSharingPolicy, SharingShared, SharingIsolated)
	}
	if p.GRPC.Address == "" {
		return invalid("io.containerd.server.v1.grpc.address", "the daemon needs a socket")
	}
	if p.TTRPC.Address == p.GRPC.Address {
		return invalid("io.containerd.server.v1.ttrpc.address", "%s is the gRPC socket already", p.TTRPC.Address)
	}
	if len(p.Diff.Order) == 0 {
		return invalid("io.containerd.service.v1.diff-service.default", "at least one differ is needed")
	}
	if t := p.GC.PauseThreshold; t < 0 || t > 0.5 {
		return invalid("io.containerd.gc.v1.scheduler.pause_threshold", "%v is not between 0 and 0.5", t)
	}
	return nil
}
