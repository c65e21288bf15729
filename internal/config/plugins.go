package config

import (
	"errors"
	"runtime"
	"slices"
	"time"
)

// Plugins are the tables of the parts of the daemon, under containerd's names
// and in their order.
type Plugins struct {
	CRIImages   CRIImages   `toml:"io.containerd.cri.v1.images"`
	CRIRuntime  CRIRuntime  `toml:"io.containerd.cri.v1.runtime"`
	ErofsDiffer ErofsDiffer `toml:"io.containerd.differ.v1.erofs"`
	GC          GC          `toml:"io.containerd.gc.v1.scheduler" comment:"When garbage is collected."`
	CRI         CRIServer   `toml:"io.containerd.grpc.v1.cri"`
	Verifier    Verifier    `toml:"io.containerd.image-verifier.v1.bindir"`
	Opt         Opt         `toml:"io.containerd.internal.v1.opt"`
	Bolt        Bolt        `toml:"io.containerd.metadata.v1.bolt"`
	Metrics     struct {
		GRPCHistogram bool `toml:"grpc_histogram" comment:"Count how long calls take (grpc_server_handling_seconds)."`
	} `toml:"io.containerd.metrics.v1.grpc-prometheus"`
	Restart struct {
		Interval Duration `toml:"interval" comment:"How often containers with a restart policy are looked at."`
	} `toml:"io.containerd.monitor.container.v1.restart"`
	Cgroups struct {
		NoPrometheus bool `toml:"no_prometheus" comment:"Leave the containers' cgroups out of the metrics."`
	} `toml:"io.containerd.monitor.task.v1.cgroups"`
	ErofsMounts  struct{}     `toml:"io.containerd.mount-handler.v1.erofs"`
	NRI          NRI          `toml:"io.containerd.nri.v1.nri"`
	Task         Task         `toml:"io.containerd.runtime.v2.task"`
	DebugServer  DebugServer  `toml:"io.containerd.server.v1.debug" comment:"pprof and expvar, below /debug/."`
	GRPC         GRPC         `toml:"io.containerd.server.v1.grpc" comment:"The socket of the API."`
	GRPCTCP      GRPCTCP      `toml:"io.containerd.server.v1.grpc-tcp" comment:"The API over TCP. Who may call it is root on this host: give it tls_ca."`
	MetricServer MetricServer `toml:"io.containerd.server.v1.metrics" comment:"Metrics for Prometheus, at /v1/metrics."`
	TTRPC        TTRPC        `toml:"io.containerd.server.v1.ttrpc" comment:"The socket on which shims publish their events."`
	Diff         Diff         `toml:"io.containerd.service.v1.diff-service"`
	Tasks        struct {
		BlockIOConfigFile string `toml:"blockio_config_file"`
		RDTConfigFile     string `toml:"rdt_config_file"`
	} `toml:"io.containerd.service.v1.tasks-service"`
	ShimManager ShimManager `toml:"io.containerd.shim.v1.manager"`
	Blockfile   Blockfile   `toml:"io.containerd.snapshotter.v1.blockfile"`
	Btrfs       *Btrfs      `toml:"io.containerd.snapshotter.v1.btrfs,omitempty"`
	Devmapper   *Devmapper  `toml:"io.containerd.snapshotter.v1.devmapper,omitempty"`
	Erofs       Erofs       `toml:"io.containerd.snapshotter.v1.erofs"`
	Native      Native      `toml:"io.containerd.snapshotter.v1.native"`
	Overlay     Overlay     `toml:"io.containerd.snapshotter.v1.overlayfs"`
	ZFS         *ZFS        `toml:"io.containerd.snapshotter.v1.zfs,omitempty"`
	Transfer    Transfer    `toml:"io.containerd.transfer.v1.local" comment:"Pulls, pushes, imports and exports."`
}

// GC is when garbage is collected.
type GC struct {
	PauseThreshold    float64  `toml:"pause_threshold" comment:"The part of the time that collections may hold up others, at most 0.5."`
	DeletionThreshold int      `toml:"deletion_threshold" comment:"So many deletions bring a collection about; 0: not by their number."`
	MutationThreshold int      `toml:"mutation_threshold" comment:"So many changes after a deletion bring a collection about."`
	ScheduleDelay     Duration `toml:"schedule_delay" comment:"How long a collection that is due waits for more to do."`
	StartupDelay      Duration `toml:"startup_delay" comment:"How long after the start the first collection is."`
}

// Verifier runs the programs of a directory before an image is pulled.
type Verifier struct {
	BinDir             string   `toml:"bin_dir" comment:"Programs that judge an image before it is pulled; each must agree."`
	MaxVerifiers       int      `toml:"max_verifiers"`
	PerVerifierTimeout Duration `toml:"per_verifier_timeout"`
}

// Opt is a directory of programs that are put on the PATH of shims.
type Opt struct {
	Path string `toml:"path" comment:"Its bin and lib are put on the PATH and the library path of the daemon and its shims."`
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
	ContentSharingPolicy string `toml:"content_sharing_policy" comment:"shared: a namespace may use a blob of another by its digest; isolated: it must bring the bytes."`
	NoSync               bool   `toml:"no_sync" comment:"Do not wait for the disk at the end of a transaction: what was acknowledged may be lost with the power."`
}

// NRI is the node resource interface.
type NRI struct {
	Disable                   bool         `toml:"disable"`
	SocketPath                string       `toml:"socket_path"`
	PluginPath                string       `toml:"plugin_path"`
	PluginConfigPath          string       `toml:"plugin_config_path"`
	PluginRegistrationTimeout Duration     `toml:"plugin_registration_timeout"`
	PluginRequestTimeout      Duration     `toml:"plugin_request_timeout"`
	DisableConnections        bool         `toml:"disable_connections"`
	DefaultValidator          NRIValidator `toml:"default_validator"`
}

// NRIValidator refuses adjustments of NRI plugins.
type NRIValidator struct {
	Enable                                bool     `toml:"enable"`
	RejectOCIHookAdjustment               bool     `toml:"reject_oci_hook_adjustment"`
	RejectRuntimeDefaultSeccompAdjustment bool     `toml:"reject_runtime_default_seccomp_adjustment"`
	RejectUnconfinedSeccompAdjustment     bool     `toml:"reject_unconfined_seccomp_adjustment"`
	RejectCustomSeccompAdjustment         bool     `toml:"reject_custom_seccomp_adjustment"`
	RejectNamespaceAdjustment             bool     `toml:"reject_namespace_adjustment"`
	RejectSysctlAdjustment                bool     `toml:"reject_sysctl_adjustment"`
	RequiredPlugins                       []string `toml:"required_plugins"`
	TolerateMissingPluginsAnnotation      string   `toml:"tolerate_missing_plugins_annotation"`
}

// Task is what runs containers.
type Task struct {
	Platforms []string `toml:"platforms"`
}

// ShimManager is how shims are started.
type ShimManager struct {
	Env       []string `toml:"env" comment:"Added to the environment of shims, as KEY=value. SCHED_CORE=1 gives each its own core-scheduling group."`
	SocketDir string   `toml:"socket_dir" comment:"Directory of shims' sockets; empty: s below state."`
}

// DebugServer is the socket of pprof; none when the address is empty.
type DebugServer struct {
	Address string `toml:"address" comment:"A socket, or host:port; empty: none."`
	UID     int    `toml:"uid"`
	GID     int    `toml:"gid"`
}

// GRPC is the socket of the API. Sizes are in bytes.
type GRPC struct {
	Address        string `toml:"address"`
	UID            int    `toml:"uid" comment:"Owner of the socket, which only it and root may use."`
	GID            int    `toml:"gid" comment:"Group of the socket; when it is not 0 the group may use it."`
	MaxRecvMsgSize int    `toml:"max_recv_message_size"`
	MaxSendMsgSize int    `toml:"max_send_message_size"`
}

// GRPCTCP is the API on a TCP address; none when that is empty.
type GRPCTCP struct {
	Address        string `toml:"address"`
	TLSCA          string `toml:"tls_ca" comment:"PEM file of the authorities that must have signed clients' certificates."`
	TLSCert        string `toml:"tls_cert" comment:"PEM files of the server's certificate and key."`
	TLSKey         string `toml:"tls_key"`
	TLSName        string `toml:"tls_common_name" comment:"The name (common name or DNS name) that clients' certificates must have; empty: any."`
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
	Order  []string `toml:"default" comment:"Differs in the order in which they are tried."`
	SyncFs bool     `toml:"sync_fs" comment:"Make every apply durable before it returns."`
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

// ZFS is the snapshotter on a ZFS pool.
type ZFS struct {
	RootPath string `toml:"root_path"`
}

// Devmapper is the snapshotter on a thin pool.
type Devmapper struct {
	RootPath       string `toml:"root_path"`
	PoolName       string `toml:"pool_name"`
	BaseImageSize  string `toml:"base_image_size"`
	AsyncRemove    bool   `toml:"async_remove"`
	DiscardBlocks  bool   `toml:"discard_blocks"`
	FileSystemType string `toml:"fs_type"`
	FsOptions      string `toml:"fs_options"`
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
	RootPath string `toml:"root_path" comment:"Its directory; empty: its own below root."`
}

// Overlay is the overlayfs snapshotter.
type Overlay struct {
	RootPath      string   `toml:"root_path" comment:"Its directory; empty: its own below root."`
	UpperdirLabel bool     `toml:"upperdir_label" comment:"Label snapshots with the path of their upper directory."`
	SyncRemove    bool     `toml:"sync_remove" comment:"Remove files with the snapshot, not behind the caller's back."`
	SlowChown     bool     `toml:"slow_chown" comment:"Remap owners by chown where the kernel has no idmapped mounts."`
	MountOptions  []string `toml:"mount_options" comment:"Added to every mount, such as index=on or metacopy=on."`
}

// Transfer is the service that pulls, pushes, imports and exports.
//
// Differs from containerd: there the defaults of the first two are 3 and 1.
type Transfer struct {
	MaxConcurrentDownloads      int      `toml:"max_concurrent_downloads" comment:"Layers that are fetched at a time; 0: by the number of cores (containerd: 3)."`
	ConcurrentLayerFetchBuffer  int      `toml:"concurrent_layer_fetch_buffer" comment:"Size in bytes of the ranges in which a large layer is fetched; 0: chosen."`
	MaxConcurrentUploadedLayers int      `toml:"max_concurrent_uploaded_layers" comment:"Layers that are pushed at a time."`
	CheckPlatformSupported      bool     `toml:"check_platform_supported" comment:"Taken, and without effect: what a client asks to be unpacked is, for every platform and snapshotter."`
	ConfigPath                  string   `toml:"config_path" comment:"Directory of hosts.toml files: /etc/containerd/certs.d."`
	MaxConcurrentUnpacks        int      `toml:"max_concurrent_unpacks" comment:"Layers that are unpacked at a time; 0: by the number of cores (containerd: 1)."`
	Unpack                      []Unpack `toml:"unpack_config,omitempty"`
}

// Unpack says which snapshotter takes a platform's images.
type Unpack struct {
	Platform    string   `toml:"platform"`
	Snapshotter string   `toml:"snapshotter"`
	Differ      string   `toml:"differ"`
	ConfigType  string   `toml:"config_type"`
	LayerTypes  []string `toml:"layer_types"`
	Optional    bool     `toml:"optional"`
}

func defaultPlugins() Plugins {
	p := Plugins{
		CRIImages:  defaultCRIImages(),
		CRIRuntime: defaultCRIRuntime(),
		CRI:        defaultCRIServer(),
		GC: GC{
			PauseThreshold:    0.02,
			MutationThreshold: 100,
			StartupDelay:      Duration(100 * time.Millisecond),
		},
		Verifier: Verifier{BinDir: "/opt/containerd/image-verifier/bin", MaxVerifiers: 10, PerVerifierTimeout: Duration(10 * time.Second)},
		Opt:      Opt{Path: "/opt/containerd"},
		Bolt:     Bolt{ContentSharingPolicy: SharingShared},
		NRI: NRI{
			SocketPath: "/var/run/nri/nri.sock", PluginPath: "/opt/nri/plugins", PluginConfigPath: "/etc/nri/conf.d",
			PluginRegistrationTimeout: Duration(5 * time.Second), PluginRequestTimeout: Duration(2 * time.Second),
		},
		Task:     Task{Platforms: []string{runtime.GOOS + "/" + runtime.GOARCH}},
		GRPC:     GRPC{Address: DefaultAddress, MaxRecvMsgSize: maxMessage, MaxSendMsgSize: maxMessage},
		GRPCTCP:  GRPCTCP{MaxRecvMsgSize: maxMessage, MaxSendMsgSize: maxMessage},
		TTRPC:    TTRPC{Address: DefaultAddress + ".ttrpc"},
		Diff:     Diff{Order: []string{"walking"}},
		Transfer: Transfer{MaxConcurrentUploadedLayers: 3},
	}
	p.Restart.Interval = Duration(10 * time.Second)
	return p
}

func (p *Plugins) check() error {
	var errs []error
	switch p.Bolt.ContentSharingPolicy {
	case "", SharingShared, SharingIsolated:
	default:
		errs = append(errs, inPlugin("io.containerd.metadata.v1.bolt", "content_sharing_policy", "%q is neither %q nor %q", p.Bolt.ContentSharingPolicy, SharingShared, SharingIsolated))
	}
	if p.GRPC.Address == "" {
		errs = append(errs, inPlugin(pluginGRPC, "address", "the daemon needs a socket"))
	}
	if p.TTRPC.Address == p.GRPC.Address {
		errs = append(errs, inPlugin(pluginTTRPC, "address", "%s is the gRPC socket already", p.TTRPC.Address))
	}
	if len(p.Diff.Order) == 0 {
		errs = append(errs, inPlugin("io.containerd.service.v1.diff-service", "default", "there must be a differ, such as \"walking\""))
	}
	if t := p.GC.PauseThreshold; !(t >= 0 && t <= 0.5) { // nor is NaN
		errs = append(errs, inPlugin("io.containerd.gc.v1.scheduler", "pause_threshold", "%v is not between 0 and 0.5", t))
	}
	if tcp := p.GRPCTCP; (tcp.TLSCert == "") != (tcp.TLSKey == "") {
		errs = append(errs, inPlugin(pluginTCP, "tls_cert", "tls_cert and tls_key go together; only one is given"))
	} else if tcp.TLSCert == "" && (tcp.TLSCA != "" || tcp.TLSName != "") {
		errs = append(errs, inPlugin(pluginTCP, "tls_ca", "clients can be told apart only with TLS: give tls_cert and tls_key too"))
	}
	for _, n := range []struct {
		plugin, key string
		value       int
	}{
		{pluginGRPC, "max_recv_message_size", p.GRPC.MaxRecvMsgSize},
		{pluginGRPC, "max_send_message_size", p.GRPC.MaxSendMsgSize},
		{pluginTCP, "max_recv_message_size", p.GRPCTCP.MaxRecvMsgSize},
		{pluginTCP, "max_send_message_size", p.GRPCTCP.MaxSendMsgSize},
		{pluginGRPC, "uid", p.GRPC.UID}, {pluginGRPC, "gid", p.GRPC.GID},
		{pluginTTRPC, "uid", p.TTRPC.UID}, {pluginTTRPC, "gid", p.TTRPC.GID},
		{pluginDebug, "uid", p.DebugServer.UID}, {pluginDebug, "gid", p.DebugServer.GID},
		{"io.containerd.transfer.v1.local", "max_concurrent_downloads", p.Transfer.MaxConcurrentDownloads},
		{"io.containerd.transfer.v1.local", "max_concurrent_unpacks", p.Transfer.MaxConcurrentUnpacks},
		{"io.containerd.transfer.v1.local", "max_concurrent_uploaded_layers", p.Transfer.MaxConcurrentUploadedLayers},
		{"io.containerd.transfer.v1.local", "concurrent_layer_fetch_buffer", p.Transfer.ConcurrentLayerFetchBuffer},
	} {
		if n.value < 0 {
			errs = append(errs, inPlugin(n.plugin, n.key, "%d is less than nothing", n.value))
		}
	}
	if slices.Contains(p.ShimManager.Env, "") {
		errs = append(errs, inPlugin(pluginShims, "env", "there is an empty entry; each is KEY=value"))
	}
	return errors.Join(errs...)
}
