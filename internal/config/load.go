package config

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// maxFile bounds a file in bytes.
const maxFile = 8 << 20

// Load reads the file at path and what it imports over the defaults. The
// warnings are of what has no effect, each with its place.
// errdefs.ErrInvalidArgument, with file, row and column, when something cannot
// be understood or an import is not there; an error that is fs.ErrNotExist when
// there is no file at path, and only then.
func Load(path string) (*Config, []Warning, error) {
	all := newTable(place{path, 1, 1})
	var (
		warnings []Warning
		pending  = []string{filepath.Clean(path)}
		loaded   = make(map[string]bool)
	)
	for len(pending) > 0 {
		next := pending[0]
		pending = pending[1:]
		if loaded[next] {
			continue // files may import each other
		}
		loaded[next] = true
		root, ws, err := readFile(next)
		if err != nil && len(loaded) > 1 {
			// Only the file at path may be missing: one without what it imports means
			// something else than no file at all.
			return nil, nil, fmt.Errorf("imports: %v: %w", err, errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return nil, nil, err
		}
		warnings = append(warnings, ws...)
		found, err := resolveImports(next, root.table["imports"])
		if err != nil {
			return nil, nil, err
		}
		pending = append(pending, found...)
		merge(all, root)
	}
	return fromTree(all, warnings)
}

// Migrate reads the file at path alone, without what it imports, for it to be
// written in the newest version.
func Migrate(path string) (*Config, []Warning, error) {
	root, warnings, err := readFile(path)
	if err != nil {
		return nil, nil, err
	}
	all := newTable(root.place)
	merge(all, root)
	return fromTree(all, warnings)
}

// Parse reads a configuration from memory; imports are named, not followed.
func Parse(name string, data []byte) (*Config, []Warning, error) {
	root, warnings, err := parseFile(name, data)
	if err != nil {
		return nil, nil, err
	}
	all := newTable(root.place)
	merge(all, root)
	return fromTree(all, warnings)
}

func readFile(path string) (*node, []Warning, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("read the configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read the configuration: %w", err)
	}
	if len(data) > maxFile {
		return nil, nil, fmt.Errorf("%s has more than %d bytes, which is no configuration: %w", path, maxFile, errdefs.ErrInvalidArgument)
	}
	return parseFile(path, data)
}

// parseFile reads one file into the shape of the newest version.
func parseFile(name string, data []byte) (*node, []Warning, error) {
	root, err := parse(name, data)
	if err != nil {
		return nil, nil, err
	}
	version, err := versionOf(root)
	if err != nil {
		return nil, nil, err
	}
	warnings := migrate(root, version)
	delete(root.table, "version")
	return root, warnings, nil
}

// resolveImports finds the files that patterns mean; relative ones start where
// the file is that has them. A pattern may match nothing, a name may not.
func resolveImports(parent string, imports *node) ([]string, error) {
	if imports == nil {
		return nil, nil
	}
	var out []string
	for _, n := range imports.list {
		p, ok := n.value.(string)
		if !ok {
			return nil, fmt.Errorf("%s: imports: the name of a file expected, found %s: %w", imports.place, n.kind(), errdefs.ErrInvalidArgument)
		}
		if !filepath.IsAbs(p) {
			p = filepath.Join(filepath.Dir(parent), p)
		}
		p = filepath.Clean(p)
		if !strings.Contains(p, "*") {
			if _, err := os.Stat(p); err != nil {
				return nil, fmt.Errorf("%s: imports: %v; create the file, or take it off the list: %w", imports.place, err, errdefs.ErrInvalidArgument)
			}
			out = append(out, p)
			continue
		}
		found, err := filepath.Glob(p)
		if err != nil {
			return nil, fmt.Errorf("%s: imports: %q: %v: %w", imports.place, p, err, errdefs.ErrInvalidArgument)
		}
		out = append(out, found...)
	}
	return out, nil
}

// fromTree lays a tree over the defaults and checks the result.
func fromTree(all *node, warnings []Warning) (*Config, []Warning, error) {
	c := Default()
	dropZero(all)
	normalise(all)
	// These are replaced by name, never entered.
	for name := range tableOf(all, "stream_processors") {
		delete(c.StreamProcessors, name)
	}
	warnings = append(warnings, c.others(all)...)
	var d decoder
	imports := c.Imports
	err := d.decode(all, c)
	warnings = append(warnings, d.warnings...)
	if err != nil {
		return nil, nil, err
	}
	for _, i := range c.Imports {
		if !slices.Contains(imports, i) {
			imports = append(imports, i)
		}
	}
	c.Imports = imports
	c.placeTTRPC(all.at("plugins", pluginTTRPC, "address") != nil)
	if err := c.Check(); err != nil {
		return nil, nil, inPlace(all, err)
	}
	warnings = append(warnings, c.idle(all)...)
	slices.SortStableFunc(warnings, func(a, b Warning) int {
		if a.File != b.File {
			return strings.Compare(a.File, b.File)
		}
		return a.Row - b.Row
	})
	return c, warnings, nil
}

// inPlace tells of every error of a key where that key stands, or would.
func inPlace(all *node, err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var errs []error
		for _, e := range joined.Unwrap() {
			errs = append(errs, inPlace(all, e))
		}
		return errors.Join(errs...)
	}
	k, ok := errors.AsType[*keyError](err)
	if !ok {
		return err
	}
	at := all.place
	for i := range k.key {
		if n := all.at(k.key[:i+1]...); n != nil {
			at = n.place
		}
	}
	return fmt.Errorf("%s: %w", at, err)
}

func tableOf(root *node, key string) map[string]*node {
	if n := root.table[key]; n != nil {
		return n.table
	}
	return nil
}

// dropZero removes values of the top level that say nothing: as containerd
// has it, root = "" leaves the default.
func dropZero(all *node) {
	for key, n := range all.table {
		if n.table == nil && n.list == nil && n.isZero() {
			delete(all.table, key)
		}
	}
	for name, n := range tableOf(all, "timeouts") {
		if n.value == "" {
			delete(all.table["timeouts"].table, name)
		}
	}
}

// normalise gives renamed plugins of the lists their names of now.
func normalise(all *node) {
	names := renamed()
	for _, key := range []string{"disabled_plugins", "required_plugins"} {
		n := all.table[key]
		if n == nil {
			continue
		}
		for _, e := range n.list {
			if s, ok := e.value.(string); ok && names[s] != "" {
				e.value = names[s]
			}
		}
	}
}

// others takes the tables of plugins that are not of this daemon out of the
// tree and keeps them in c, so that they are written again.
func (c *Config) others(all *node) []Warning {
	known := fieldsOf(reflect.ValueOf(&c.Plugins).Elem())
	plugins := tableOf(all, "plugins")
	var warnings []Warning
	for _, name := range slices.Sorted(maps.Keys(plugins)) {
		if _, ok := known[name]; ok {
			continue
		}
		n := plugins[name]
		delete(plugins, name)
		if n.table == nil {
			warnings = append(warnings, n.warning("unknown key %q is ignored: [plugins] has only tables", keyName([]string{"plugins", name})))
			continue
		}
		if c.Others == nil {
			c.Others = make(map[string]any)
		}
		c.Others[name] = n.plain()
		if advice, ok := withoutTable()[name]; ok {
			if len(n.table) > 0 {
				warnings = append(warnings, n.warning("[plugins.'%s'] is ignored: %s", name, advice))
			}
			continue
		}
		warnings = append(warnings, n.warning("[plugins.'%s'] is ignored: this daemon has no plugin of that name%s", name, didYouMean(name, maps.Keys(known))))
	}
	return warnings
}

// withoutTable are plugins that had keys once, with what has come after them.
func withoutTable() map[string]string {
	const tracing = "tracing is set by the environment since containerd 2.0: OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_PROTOCOL, OTEL_TRACES_SAMPLER, OTEL_SERVICE_NAME"
	return map[string]string{
		"io.containerd.internal.v1.tracing":       tracing,
		"io.containerd.tracing.processor.v1.otlp": tracing,
		"io.containerd.runtime.v1.linux":          "the runtime of version 1 is gone; containers use io.containerd.runc.v2",
		"io.containerd.snapshotter.v1.aufs":       "aufs is gone since containerd 2.0; use overlayfs",
	}
}
