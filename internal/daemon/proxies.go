package daemon

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"

	"berth/internal/config"
	"berth/internal/content"
	"berth/internal/grpcapi"
	"berth/internal/remote"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
)

const (
	contentPlugin = "io.containerd.content.v1"
	sandboxPlugin = "io.containerd.sandbox.controller.v1"
)

// openProxies makes the connections to proxy plugins. None is used yet: they
// may come up after the daemon.
func (d *Daemon) openProxies(context.Context) error {
	d.proxies = map[string]*remote.Proxy{}
	for name, c := range d.cfg.ProxyPlugins {
		p, err := remote.NewProxy(name, c.Address)
		if err != nil {
			return err
		}
		d.proxies[name] = p
		d.onClose(p.Close)
	}
	return nil
}

// proxiesOf are the configured ones of a type, which has a short name, in the
// order of their names.
func (d *Daemon) proxiesOf(short, full string) iter.Seq2[string, config.ProxyPlugin] {
	return func(yield func(string, config.ProxyPlugin) bool) {
		for _, name := range slices.Sorted(maps.Keys(d.cfg.ProxyPlugins)) {
			if p := d.cfg.ProxyPlugins[name]; p.Type == short || p.Type == full {
				if !yield(name, p) {
					return
				}
			}
		}
	}
}

// proxyPlugin puts a proxy in its place and reports it.
func (d *Daemon) proxyPlugin(name, kind string, use func(*remote.Proxy) error) {
	c := d.cfg.ProxyPlugins[name]
	plugin := grpcapi.Plugin{Type: kind, ID: name, Platforms: hostPlatform(), Exports: maps.Clone(c.Exports), Capabilities: c.Capabilities}
	if plugin.Exports == nil {
		plugin.Exports = map[string]string{}
	}
	plugin.Exports["address"] = c.Address
	if c.Platform != "" {
		if p, err := platforms.Parse(c.Platform); err != nil {
			d.log.Warn("a proxy plugin's platform is not one", "plugin", kind+"."+name, "platform", c.Platform, "error", err)
		} else {
			plugin.Platforms[0] = p
		}
	}
	d.optional(plugin, func() error { return use(d.proxies[name]) })
}

// contentProxy is the content store if that is a proxy plugin: then the one
// built in must be disabled, for there can be one only.
func (d *Daemon) contentProxy() (content.Store, error) {
	var store content.Store
	for name := range d.proxiesOf("content", contentPlugin) {
		d.proxyPlugin(name, contentPlugin, func(conn *remote.Proxy) error {
			if store != nil || !d.cfg.Disabled(contentPlugin+".content") {
				return fmt.Errorf("there can be one content store only; disable %s.content to use this one: %w", contentPlugin, errdefs.ErrFailedPrecondition)
			}
			store = remote.NewContent(conn)
			return nil
		})
	}
	return store, nil
}

// proxySandboxers adds the sandbox controllers that are proxy plugins.
func (d *Daemon) proxySandboxers() {
	for name := range d.proxiesOf("sandbox", sandboxPlugin) {
		d.proxyPlugin(name, sandboxPlugin, func(conn *remote.Proxy) error {
			if _, ok := d.sandboxers[name]; ok {
				return fmt.Errorf("a sandbox controller of that name is built in: %w", errdefs.ErrAlreadyExists)
			}
			d.sandboxers[name] = remote.NewSandboxes(conn, name)
			return nil
		})
	}
}
