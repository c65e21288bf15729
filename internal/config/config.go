// Package config is the daemon's configuration: containerd's config.toml with
// its table names, versions 1 to 4, as typed structs with their defaults.
//
// A file is decoded strictly: a key that is not known is reported with its
// place and ignored, a value of the wrong type is an error with its place.
// Files that it imports are decoded over it in order, key by key; the lists of
// the top level (imports and the plugin lists) are joined.
//
// Whatever the version of a file, the result has the shape of version 4: the
// tables [grpc], [ttrpc], [metrics] and the address of [debug] of older files
// are moved to those of the server plugins.
package config

import (
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/containerd/errdefs"
)

// Version is the newest version of the file.
const Version = 4

// DefaultPath is where the file is looked for; it may be missing.
const DefaultPath = "/etc/containerd/config.toml"

// DefaultAddress is the socket of the gRPC API.
const DefaultAddress = "/run/containerd/containerd.sock"

// maxMessage bounds gRPC messages in bytes, as containerd does.
const maxMessage = 16 << 20

// Config is a configuration in the shape of version 4.
type Config struct {
	Version int    `toml:"version"`
	Root    string `toml:"root"`
	State   string `toml:"state"`
	// Temp becomes TMPDIR of the daemon; empty leaves it.
	Temp string `toml:"temp"`
	// DisabledPlugins are not started, RequiredPlugins must start: full names
	// such as io.containerd.snapshotter.v1.native.
	DisabledPlugins []string `toml:"disabled_plugins"`
	RequiredPlugins []string `toml:"required_plugins"`
	// OOMScore is the daemon's oom_score_adj; 0 leaves it.
	OOMScore int      `toml:"oom_score"`
	Imports  []string `toml:"imports"`

	Debug            Debug                      `toml:"debug"`
	Plugins          Plugins                    `toml:"plugins"`
	Cgroup           Cgroup                     `toml:"cgroup"`
	Timeouts         map[string]Duration        `toml:"timeouts,omitempty"`
	ProxyPlugins     map[string]ProxyPlugin     `toml:"proxy_plugins,omitempty"`
	StreamProcessors map[string]StreamProcessor `toml:"stream_processors,omitempty"`

	// Tables of versions 1 to 3; nil once a file is read.
	GRPC    *legacyGRPC    `toml:"grpc,omitempty"`
	TTRPC   *legacyTTRPC   `toml:"ttrpc,omitempty"`
	Metrics *legacyMetrics `toml:"metrics,omitempty"`
}

// Debug says how to log.
type Debug struct {
	// Level is trace, debug, info, warn, error, fatal or panic; info when empty.
	Level string `toml:"level"`
	// Format is text or json; text when empty.
	Format     string `toml:"format"`
	LogTraceID bool   `toml:"log_trace_id"`

	// Of versions 1 to 3; moved to Plugins.Debug.
	Address string `toml:"address,omitempty"`
	UID     int    `toml:"uid,omitempty"`
	GID     int    `toml:"gid,omitempty"`
}

// Cgroup is where the daemon puts itself; empty leaves it where it is.
type Cgroup struct {
	Path string `toml:"path"`
}

// ProxyPlugin is an engine behind a socket.
type ProxyPlugin struct {
	Type         string            `toml:"type"`
	Address      string            `toml:"address"`
	Platform     string            `toml:"platform"`
	Exports      map[string]string `toml:"exports,omitempty"`
	Capabilities []string          `toml:"capabilities,omitempty"`
}

// StreamProcessor is a program that turns layers of one media type into another.
type StreamProcessor struct {
	Accepts []string `toml:"accepts"`
	Returns string   `toml:"returns"`
	Path    string   `toml:"path"`
	Args    []string `toml:"args"`
	Env     []string `toml:"env"`
}

type legacyGRPC struct {
	Address        string `toml:"address,omitempty"`
	TCPAddress     string `toml:"tcp_address,omitempty"`
	TCPTLSCA       string `toml:"tcp_tls_ca,omitempty"`
	TCPTLSCert     string `toml:"tcp_tls_cert,omitempty"`
	TCPTLSKey      string `toml:"tcp_tls_key,omitempty"`
	TCPTLSName     string `toml:"tcp_tls_common_name,omitempty"`
	UID            int    `toml:"uid,omitempty"`
	GID            int    `toml:"gid,omitempty"`
	MaxRecvMsgSize int    `toml:"max_recv_message_size,omitempty"`
	MaxSendMsgSize int    `toml:"max_send_message_size,omitempty"`
}

type legacyTTRPC struct {
	Address string `toml:"address,omitempty"`
	UID     int    `toml:"uid,omitempty"`
	GID     int    `toml:"gid,omitempty"`
}

type legacyMetrics struct {
	Address       string `toml:"address,omitempty"`
	GRPCHistogram bool   `toml:"grpc_histogram,omitempty"`
}

// Duration is a time span, written as "1m30s".
type Duration time.Duration

func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as \"1m30s\"", text)
	}
	*d = Duration(v)
	return nil
}

// Default is the configuration of a daemon without a file.
func Default() *Config {
	return &Config{
		Version:         Version,
		Root:            "/var/lib/containerd",
		State:           "/run/containerd",
		DisabledPlugins: []string{},
		RequiredPlugins: []string{},
		Imports:         []string{"/etc/containerd/conf.d/*.toml"},
		Plugins: Plugins{
			GC: GC{
				PauseThreshold:    0.02,
				MutationThreshold: 100,
				StartupDelay:      Duration(100 * time.Millisecond),
			},
			Verifier:    Verifier{BinDir: "/opt/containerd/image-verifier/bin", MaxVerifiers: 10, PerVerifierTimeout: Duration(10 * time.Second)},
			Opt:         Opt{Path: "/opt/containerd"},
			Bolt:        Bolt{ContentSharingPolicy: SharingShared},
			Task:        Task{Platforms: []string{runtime.GOOS + "/" + runtime.GOARCH}},
			GRPC:        GRPC{Address: DefaultAddress, MaxRecvMsgSize: maxMessage, MaxSendMsgSize: maxMessage},
			GRPCTCP:     GRPCTCP{MaxRecvMsgSize: maxMessage, MaxSendMsgSize: maxMessage},
			TTRPC:       TTRPC{Address: DefaultAddress + ".ttrpc"},
			Diff:        Diff{Order: []string{"walking"}},
			ShimManager: ShimManager{Env: []string{}},
		},
	}
}

// SetAddress puts the gRPC socket elsewhere, and the ttrpc socket beside it
// unless the file had placed that.
func (c *Config) SetAddress(address string) {
	if c.Plugins.TTRPC.Address == c.Plugins.GRPC.Address+".ttrpc" {
		c.Plugins.TTRPC.Address = address + ".ttrpc"
	}
	c.Plugins.GRPC.Address = address
}

// Disabled reports whether the plugin of that full name is not to be started.
func (c *Config) Disabled(name string) bool { return contains(c.DisabledPlugins, name) }

// Required reports whether the daemon must not run without that plugin.
func (c *Config) Required(name string) bool { return contains(c.RequiredPlugins, name) }

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

// Check reports the first value that no daemon could run with, as
// errdefs.ErrInvalidArgument. Root and state are made absolute.
func (c *Config) Check() error {
	if c.Version < 0 || c.Version > Version {
		return invalid("version", "expected containerd config version equal to or less than `%d`, got `%d`", Version, c.Version)
	}
	for key, dir := range map[string]*string{"root": &c.Root, "state": &c.State} {
		if *dir == "" {
			return invalid(key, "a directory must be given")
		}
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return invalid(key, "%v", err)
		}
		*dir = abs
	}
	if c.Root == c.State {
		return invalid("state", "root and state must be different directories, both are %s", c.Root)
	}
	if c.OOMScore < -1000 || c.OOMScore > 1000 {
		return invalid("oom_score", "%d is not between -1000 and 1000", c.OOMScore)
	}
	for key, list := range map[string][]string{"disabled_plugins": c.DisabledPlugins, "required_plugins": c.RequiredPlugins} {
		for _, name := range list {
			if !strings.Contains(name, ".") {
				return invalid(key, "%q is not a full plugin name such as io.containerd.snapshotter.v1.native", name)
			}
		}
	}
	switch c.Debug.Format {
	case "", "text", "json":
	default:
		return invalid("debug.format", "%q is neither text nor json", c.Debug.Format)
	}
	return c.Plugins.check()
}

func invalid(key, format string, args ...any) error {
	return fmt.Errorf("configuration: %s: %s: %w", key, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}
