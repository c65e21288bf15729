package config

// CRIImages is what kubelet's images are pulled with.
type CRIImages struct {
	Snapshotter                string                 `toml:"snapshotter"`
	DisableSnapshotAnnotations bool                   `toml:"disable_snapshot_annotations"`
	DiscardUnpackedLayers      bool                   `toml:"discard_unpacked_layers"`
	MaxConcurrentDownloads     int                    `toml:"max_concurrent_downloads"`
	ConcurrentLayerFetchBuffer int                    `toml:"concurrent_layer_fetch_buffer"`
	ImagePullProgressTimeout   Duration               `toml:"image_pull_progress_timeout"`
	ImagePullWithSyncFs        bool                   `toml:"image_pull_with_sync_fs"`
	StatsCollectPeriod         int                    `toml:"stats_collect_period"`
	UseLocalImagePull          bool                   `toml:"use_local_image_pull"`
	PinnedImages               map[string]string      `toml:"pinned_images"`
	RuntimePlatforms           map[string]CRIPlatform `toml:"runtime_platforms,omitempty"`
	Registry                   CRIRegistry            `toml:"registry"`
	ImageDecryption            struct {
		KeyModel string `toml:"key_model"`
	} `toml:"image_decryption"`
}

// CRIPlatform is the platform and snapshotter of a runtime's images.
type CRIPlatform struct {
	Platform    string `toml:"platform"`
	Snapshotter string `toml:"snapshotter"`
}

// CRIRegistry is how registries are reached: by the hosts.toml files of
// ConfigPath, or by the older tables.
type CRIRegistry struct {
	ConfigPath string                       `toml:"config_path"`
	Mirrors    map[string]CRIMirror         `toml:"mirrors,omitempty"`
	Configs    map[string]CRIRegistryConfig `toml:"configs,omitempty"`
	Auths      map[string]CRIAuth           `toml:"auths,omitempty"`
	Headers    map[string][]string          `toml:"headers,omitempty"`
}

// CRIMirror is a registry's mirrors, in order.
type CRIMirror struct {
	Endpoints []string `toml:"endpoint"`
}

// CRIRegistryConfig is the credentials of a registry.
type CRIRegistryConfig struct {
	Auth *CRIAuth `toml:"auth,omitempty"`
}

// CRIAuth is a name and a password, or a token.
type CRIAuth struct {
	Username      string `toml:"username"`
	Password      string `toml:"password"`
	Auth          string `toml:"auth"`
	IdentityToken string `toml:"identitytoken"`
}

// CRIRuntime is how pods and their containers are run.
type CRIRuntime struct {
	EnableSelinux                      bool          `toml:"enable_selinux"`
	SelinuxCategoryRange               int           `toml:"selinux_category_range"`
	MaxContainerLogLineSize            int           `toml:"max_container_log_line_size"`
	DisableApparmor                    bool          `toml:"disable_apparmor"`
	RestrictOOMScoreAdj                bool          `toml:"restrict_oom_score_adj"`
	DisableProcMount                   bool          `toml:"disable_proc_mount"`
	UnsetSeccompProfile                string        `toml:"unset_seccomp_profile"`
	TolerateMissingHugetlbController   bool          `toml:"tolerate_missing_hugetlb_controller"`
	DisableHugetlbController           bool          `toml:"disable_hugetlb_controller"`
	DeviceOwnershipFromSecurityContext bool          `toml:"device_ownership_from_security_context"`
	IgnoreImageDefinedVolumes          bool          `toml:"ignore_image_defined_volumes"`
	NetNSMountsUnderStateDir           bool          `toml:"netns_mounts_under_state_dir"`
	EnableUnprivilegedPorts            bool          `toml:"enable_unprivileged_ports"`
	EnableUnprivilegedICMP             bool          `toml:"enable_unprivileged_icmp"`
	CDISpecDirs                        []string      `toml:"cdi_spec_dirs"`
	DrainExecSyncIOTimeout             Duration      `toml:"drain_exec_sync_io_timeout"`
	IgnoreDeprecationWarnings          []string      `toml:"ignore_deprecation_warnings"`
	StatsCollectPeriod                 string        `toml:"stats_collect_period"`
	StatsRetentionPeriod               string        `toml:"stats_retention_period"`
	EnableCRIU                         bool          `toml:"enable_criu"`
	Containerd                         CRIContainerd `toml:"containerd"`
	CNI                                CRICNI        `toml:"cni"`
}

// CRIContainerd is the runtimes that pods may ask for.
type CRIContainerd struct {
	DefaultRuntimeName            string                `toml:"default_runtime_name"`
	IgnoreBlockIONotEnabledErrors bool                  `toml:"ignore_blockio_not_enabled_errors"`
	IgnoreRDTNotEnabledErrors     bool                  `toml:"ignore_rdt_not_enabled_errors"`
	Runtimes                      map[string]CRIHandler `toml:"runtimes"`
}

// CRIHandler is a runtime handler. Options are of the runtime, kept as they are.
type CRIHandler struct {
	Type                                          string   `toml:"runtime_type"`
	Path                                          string   `toml:"runtime_path"`
	PodAnnotations                                []string `toml:"pod_annotations"`
	ContainerAnnotations                          []string `toml:"container_annotations"`
	PrivilegedWithoutHostDevices                  bool     `toml:"privileged_without_host_devices"`
	PrivilegedWithoutHostDevicesAllDevicesAllowed bool     `toml:"privileged_without_host_devices_all_devices_allowed"`
	CgroupWritable                                bool     `toml:"cgroup_writable"`
	BaseRuntimeSpec                               string   `toml:"base_runtime_spec"`
	CNIConfDir                                    string   `toml:"cni_conf_dir"`
	CNIMaxConfNum                                 int      `toml:"cni_max_conf_num"`
	Snapshotter                                   string   `toml:"snapshotter"`
	Sandboxer                                     string   `toml:"sandboxer"`
	DisablePauseImagePull                         bool     `toml:"disable_pause_image_pull"`
	IOType                                        string   `toml:"io_type"`

	Options map[string]any `toml:"options,omitempty"`
}

// CRICNI is where the network plugins are.
type CRICNI struct {
	BinDirs             []string `toml:"bin_dirs"`
	ConfDir             string   `toml:"conf_dir"`
	MaxConfNum          int      `toml:"max_conf_num"`
	SetupSerially       bool     `toml:"setup_serially"`
	ConfTemplate        string   `toml:"conf_template"`
	IPPreference        string   `toml:"ip_pref"`
	UseInternalLoopback bool     `toml:"use_internal_loopback"`
}

// CRIServer is the server of exec, attach and port-forward.
type CRIServer struct {
	DisableTCPService   bool   `toml:"disable_tcp_service"`
	StreamServerAddress string `toml:"stream_server_address"`
	StreamServerPort    string `toml:"stream_server_port"`
	StreamIdleTimeout   string `toml:"stream_idle_timeout"`
	EnableTLSStreaming  bool   `toml:"enable_tls_streaming"`
	X509KeyPair         struct {
		CertFile string `toml:"tls_cert_file"`
		KeyFile  string `toml:"tls_key_file"`
	} `toml:"x509_key_pair_streaming"`
}

func defaultCRIImages() CRIImages {
	c := CRIImages{
		Snapshotter:                "overlayfs",
		DisableSnapshotAnnotations: true,
		MaxConcurrentDownloads:     3,
		ImagePullProgressTimeout:   Duration(300e9),
		StatsCollectPeriod:         10,
		PinnedImages:               map[string]string{"sandbox": "registry.k8s.io/pause:3.10.2"},
	}
	c.ImageDecryption.KeyModel = "node"
	return c
}

func defaultCRIRuntime() CRIRuntime {
	return CRIRuntime{
		SelinuxCategoryRange:             1024,
		MaxContainerLogLineSize:          16 << 10,
		TolerateMissingHugetlbController: true,
		DisableHugetlbController:         true,
		EnableUnprivilegedPorts:          true,
		EnableUnprivilegedICMP:           true,
		CDISpecDirs:                      []string{"/etc/cdi", "/var/run/cdi"},
		EnableCRIU:                       true,
		Containerd: CRIContainerd{
			DefaultRuntimeName: "runc",
			Runtimes: map[string]CRIHandler{"runc": {
				Type:      "io.containerd.runc.v2",
				Sandboxer: "podsandbox",
				Options: map[string]any{
					"BinaryName": "", "CriuImagePath": "", "CriuWorkPath": "", "IoGid": 0, "IoUid": 0,
					"NoNewKeyring": false, "Root": "", "ShimCgroup": "", "SystemdCgroup": false,
				},
			}},
		},
		CNI: CRICNI{BinDirs: []string{"/opt/cni/bin"}, ConfDir: "/etc/cni/net.d", MaxConfNum: 1},
	}
}

func defaultCRIServer() CRIServer {
	return CRIServer{DisableTCPService: true, StreamServerAddress: "127.0.0.1", StreamServerPort: "0", StreamIdleTimeout: "4h0m0s"}
}
