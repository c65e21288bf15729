// Package config is the daemon's configuration: containerd's config.toml with
// its table names, versions 1 to 4, as typed structs with their defaults.
//
// A file is read into a tree whose nodes know their places (tree.go), brought
// to the newest version (migrate.go), laid over what was read before it
// (merge.go: files that a file imports follow it, in order, each once), and the
// whole is then laid over the defaults (decode.go). So every message names
// file, row, column and key: a key that is not known, or has no effect in this
// daemon, is a warning; a value of the wrong type or out of its bounds is an
// error.
//
// Whatever the version of a file, the result has the shape of version 4: the
// tables [grpc], [ttrpc], [metrics] and the address of [debug] of older files
// are those of the server plugins.
package config

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
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

// Config is a configuration in the shape of version 4. The comment of a field
// is what `containerd config default` writes above its key.
type Config struct {
	Version         int      `toml:"version" comment:"The version of this file's format. 1 to 3 are read too; 'containerd config migrate' rewrites them."`
	Root            string   `toml:"root" comment:"Directory of what lasts: images, snapshots, records."`
	State           string   `toml:"state" comment:"Directory of what a reboot clears away: bundles, sockets."`
	Temp            string   `toml:"temp" comment:"TMPDIR of shims; empty: that of the environment."`
	DisabledPlugins []string `toml:"disabled_plugins" comment:"Full names of plugins that are not started, as 'ctr plugins ls' joins them: io.containerd.snapshotter.v1.native."`
	RequiredPlugins []string `toml:"required_plugins" comment:"Full names of plugins without which the daemon must not start."`
	OOMScore        int      `toml:"oom_score" comment:"oom_score_adj of the daemon, -1000 to 1000; 0 leaves it."`
	Imports         []string `toml:"imports" comment:"Files that are laid over this one, in order; relative names start here, * matches many."`

	Debug            Debug                      `toml:"debug"`
	Plugins          Plugins                    `toml:"plugins"`
	Cgroup           Cgroup                     `toml:"cgroup"`
	Timeouts         map[string]Duration        `toml:"timeouts,omitempty"`
	ProxyPlugins     map[string]ProxyPlugin     `toml:"proxy_plugins,omitempty"`
	StreamProcessors map[string]StreamProcessor `toml:"stream_processors,omitempty"`
	// PluginDir is of containerd before 2.0.
	PluginDir string `toml:"plugin_dir,omitempty"`

	// Others are the tables of plugins that this daemon does not have; they are
	// written again as they were read.
	Others map[string]any `toml:"-"`
}

// Debug says how to log.
type Debug struct {
	Level      string `toml:"level" comment:"trace, debug, info, warn, error, fatal or panic; empty is info. SIGHUP reloads it."`
	Format     string `toml:"format" comment:"text or json; empty is text."`
	LogTraceID bool   `toml:"log_trace_id" comment:"Put the IDs of trace and span on lines that are logged within one."`
}

// Cgroup is where the daemon puts itself.
type Cgroup struct {
	Path string `toml:"path" comment:"The cgroup that the daemon moves into, made when it is missing; empty: stay."`
}

// ProxyPlugin is an engine behind a socket.
type ProxyPlugin struct {
	Type         string            `toml:"type" comment:"snapshot, content, diff or sandbox"`
	Address      string            `toml:"address"`
	Platform     string            `toml:"platform"`
	Exports      map[string]string `toml:"exports,omitempty"`
	Capabilities []string          `toml:"capabilities"`
}

// StreamProcessor is a program that turns layers of one media type into another.
type StreamProcessor struct {
	Accepts []string `toml:"accepts" comment:"Media types of layers that it reads on stdin."`
	Returns string   `toml:"returns" comment:"The media type that it writes to stdout."`
	Path    string   `toml:"path"`
	Args    []string `toml:"args"`
	Env     []string `toml:"env"`
}

// Names of timeouts, in containerd's words.
const (
	TimeoutBoltOpen     = "io.containerd.timeout.bolt.open"
	TimeoutDeferCleanup = "io.containerd.timeout.cri.defercleanup"
	TimeoutShimStats    = "io.containerd.timeout.metrics.shimstats"
	TimeoutShimCleanup  = "io.containerd.timeout.shim.cleanup"
	TimeoutShimLoad     = "io.containerd.timeout.shim.load"
	TimeoutShimShutdown = "io.containerd.timeout.shim.shutdown"
	TimeoutTaskState    = "io.containerd.timeout.task.state"
)

// Timeout is how long the daemon waits for something, by its name above.
func (c *Config) Timeout(name string) time.Duration { return time.Duration(c.Timeouts[name]) }

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
		Version:          Version,
		Root:             "/var/lib/containerd",
		State:            "/run/containerd",
		DisabledPlugins:  []string{},
		RequiredPlugins:  []string{},
		Imports:          []string{"/etc/containerd/conf.d/*.toml"},
		Plugins:          defaultPlugins(),
		StreamProcessors: defaultProcessors(),
		Timeouts: map[string]Duration{
			TimeoutBoltOpen:     0,
			TimeoutDeferCleanup: Duration(time.Minute),
			TimeoutShimStats:    Duration(2 * time.Second),
			TimeoutShimCleanup:  Duration(10 * time.Second), // Differs from containerd: 5 s is too little for a busy disk
			TimeoutShimLoad:     Duration(5 * time.Second),
			TimeoutShimShutdown: Duration(3 * time.Second),
			TimeoutTaskState:    Duration(2 * time.Second),
		},
	}
}

func defaultProcessors() map[string]StreamProcessor {
	processor := func(accepts, returns string) StreamProcessor {
		return StreamProcessor{
			Accepts: []string{accepts}, Returns: returns, Path: "ctd-decoder",
			Args: []string{"--decryption-keys-path", "/etc/containerd/ocicrypt/keys"},
			Env:  []string{"OCICRYPT_KEYPROVIDER_CONFIG=/etc/containerd/ocicrypt/ocicrypt_keyprovider.conf"},
		}
	}
	const layer = "application/vnd.oci.image.layer.v1.tar"
	return map[string]StreamProcessor{
		"io.containerd.ocicrypt.decoder.v1.tar":      processor(layer+"+encrypted", layer),
		"io.containerd.ocicrypt.decoder.v1.tar.gzip": processor(layer+"+gzip+encrypted", layer+"+gzip"),
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

// placeTTRPC puts the ttrpc socket beside the gRPC socket when only that was
// given a place.
//
// Differs from containerd: there a version 4 file must place both, and two
// daemons whose files do not fight for one ttrpc socket.
func (c *Config) placeTTRPC(given bool) {
	if given || c.Plugins.GRPC.Address == DefaultAddress {
		return
	}
	c.Plugins.TTRPC.Address = c.Plugins.GRPC.Address + ".ttrpc"
	if c.Plugins.TTRPC.UID == 0 && c.Plugins.TTRPC.GID == 0 {
		c.Plugins.TTRPC.UID, c.Plugins.TTRPC.GID = c.Plugins.GRPC.UID, c.Plugins.GRPC.GID
	}
}

// Disabled reports whether the plugin of that full name is not to be started.
func (c *Config) Disabled(name string) bool { return slices.Contains(c.DisabledPlugins, name) }

// Required reports whether the daemon must not run without that plugin.
func (c *Config) Required(name string) bool { return slices.Contains(c.RequiredPlugins, name) }

// Check reports the values that no daemon could run with, as
// errdefs.ErrInvalidArgument, all of them joined. Root, state and the sockets of
// the API are made absolute paths.
func (c *Config) Check() error {
	return errors.Join(c.checkVersion(), c.checkDirs(), c.checkNames(), c.checkDebug(), c.checkNumbers(), c.checkOutside(), c.Plugins.check())
}

func (c *Config) checkVersion() error {
	if c.Version < 0 || c.Version > Version {
		return invalid("version", "expected containerd config version equal to or less than `%d`, got `%d`", Version, c.Version)
	}
	return nil
}

func (c *Config) checkDirs() error {
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
	// Shims have another working directory and want a path.
	for _, socket := range []*string{&c.Plugins.GRPC.Address, &c.Plugins.TTRPC.Address} {
		if path := strings.TrimPrefix(*socket, "unix://"); path != "" {
			abs, err := filepath.Abs(path)
			if err != nil {
				return invalid("address", "%v", err)
			}
			*socket = abs
		}
	}
	if c.Root == c.State {
		return invalid("state", "root and state must be different directories, both are %s", c.Root)
	}
	return nil
}

func (c *Config) checkNames() error {
	var errs []error
	for _, list := range []struct {
		key   string
		names []string
	}{{"disabled_plugins", c.DisabledPlugins}, {"required_plugins", c.RequiredPlugins}} {
		for _, name := range list.names {
			if !strings.Contains(name, ".") {
				errs = append(errs, invalid(list.key, "%q is not a full plugin name such as io.containerd.snapshotter.v1.native", name))
			}
		}
	}
	return errors.Join(errs...)
}

func (c *Config) checkDebug() error {
	var errs []error
	switch c.Debug.Format {
	case "", "text", "json":
	default:
		errs = append(errs, invalid("debug.format", "%q is neither text nor json", c.Debug.Format))
	}
	if !slices.Contains(levels(), strings.ToLower(c.Debug.Level)) {
		errs = append(errs, invalid("debug.level", "log level %q is none of %s", c.Debug.Level, strings.Join(levels()[1:], ", ")))
	}
	return errors.Join(errs...)
}

func (c *Config) checkNumbers() error {
	var errs []error
	if c.OOMScore < -1000 || c.OOMScore > 1000 {
		errs = append(errs, invalid("oom_score", "%d is not between -1000 and 1000", c.OOMScore))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Timeouts)) {
		if c.Timeouts[name] < 0 {
			errs = append(errs, keyed([]string{"timeouts", name}, "%s is less than nothing", time.Duration(c.Timeouts[name])))
		}
	}
	return errors.Join(errs...)
}

func levels() []string {
	return []string{"", "trace", "debug", "info", "warn", "warning", "error", "fatal", "panic"}
}

// checkOutside checks what is of other programs.
func (c *Config) checkOutside() error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(c.ProxyPlugins)) {
		p := c.ProxyPlugins[name]
		if p.Address == "" {
			errs = append(errs, keyed([]string{"proxy_plugins", name}, "the proxy needs an address, the socket of its engine"))
		}
		if _, ok := ProxyType(p.Type); !ok {
			errs = append(errs, keyed([]string{"proxy_plugins", name, "type"}, "%q is none of snapshot, content, diff, sandbox", p.Type))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.StreamProcessors)) {
		switch p := c.StreamProcessors[name]; {
		case p.Path == "":
			errs = append(errs, keyed([]string{"stream_processors", name}, "the processor needs a path, its program"))
		case len(p.Accepts) == 0 || p.Returns == "":
			errs = append(errs, keyed([]string{"stream_processors", name}, "the processor must say which media types it accepts and which it returns"))
		}
	}
	return errors.Join(errs...)
}

// ProxyType is the plugin type of a proxy, whose type may be written short.
func ProxyType(t string) (full string, ok bool) {
	for short, full := range map[string]string{
		"snapshot": "io.containerd.snapshotter.v1",
		"content":  "io.containerd.content.v1",
		"diff":     "io.containerd.differ.v1",
		"sandbox":  "io.containerd.sandbox.controller.v1",
	} {
		if t == short || t == full {
			return full, true
		}
	}
	return "", false
}

// keyError is a value that no daemon can run with.
type keyError struct {
	key  []string
	text string
}

func (e *keyError) Error() string {
	return fmt.Sprintf("configuration: %s: %s: %s", keyName(e.key), e.text, errdefs.ErrInvalidArgument)
}

func (e *keyError) Unwrap() error { return errdefs.ErrInvalidArgument }

// invalid is the error of a key of the top level, or of one of its tables.
func invalid(key, format string, args ...any) error {
	return keyed(strings.Split(key, "."), format, args...)
}

func keyed(key []string, format string, args ...any) error {
	return &keyError{key, fmt.Sprintf(format, args...)}
}

func inPlugin(plugin, key, format string, args ...any) error {
	return keyed([]string{"plugins", plugin, key}, format, args...)
}
