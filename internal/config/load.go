package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// Warning is something in a file that is ignored.
type Warning struct {
	File        string
	Row, Column int
	Text        string
}

func (w Warning) String() string {
	return fmt.Sprintf("%s:%d:%d: %s", w.File, w.Row, w.Column, w.Text)
}

// Load reads the file at path and what it imports over the defaults.
// errdefs.ErrInvalidArgument with file, row and column when one cannot be
// understood; an error that is fs.ErrNotExist when there is no such file.
func Load(path string) (*Config, []Warning, error) {
	c := Default()
	var (
		warnings []Warning
		pending  = []string{path}
		loaded   = make(map[string]bool)
		imports  []string
	)
	for len(pending) > 0 {
		next := pending[0]
		pending = pending[1:]
		if loaded[next] {
			continue // files may import each other
		}
		loaded[next] = true
		data, err := os.ReadFile(next)
		if err != nil {
			return nil, nil, fmt.Errorf("read the configuration: %w", err)
		}
		ws, more, err := c.Decode(next, data)
		if err != nil {
			return nil, nil, err
		}
		warnings = append(warnings, ws...)
		imports = joined(imports, more)
		found, err := resolveImports(next, more)
		if err != nil {
			return nil, nil, err
		}
		pending = append(pending, found...)
	}
	c.Imports = imports
	if err := c.Check(); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, warnings, nil
}

// resolveImports finds the files that patterns mean; relative ones start where
// the file is that has them. A pattern may match nothing, a name may not.
func resolveImports(parent string, patterns []string) ([]string, error) {
	var out []string
	for _, p := range patterns {
		if !filepath.IsAbs(p) {
			p = filepath.Join(filepath.Dir(parent), p)
		}
		p = filepath.Clean(p)
		if !strings.Contains(p, "*") {
			out = append(out, p)
			continue
		}
		found, err := filepath.Glob(p)
		if err != nil {
			return nil, fmt.Errorf("%s: import %q: %v: %w", parent, p, err, errdefs.ErrInvalidArgument)
		}
		out = append(out, found...)
	}
	return out, nil
}

// head is what must be known of a file before the rest makes sense.
type head struct {
	Version int            `toml:"version"`
	Imports []string       `toml:"imports"`
	Plugins map[string]any `toml:"plugins"`
}

// Decode reads one file over c and returns what it imports. The name stands in
// messages.
func (c *Config) Decode(name string, data []byte) (warnings []Warning, imports []string, err error) {
	var h head
	if err := toml.Unmarshal(data, &h); err != nil {
		return nil, nil, placed(name, err)
	}
	if h.Version < 0 || h.Version > Version {
		return nil, nil, fmt.Errorf("%s: %w", name, invalid("version", "expected containerd config version equal to or less than `%d`, got `%d`", Version, h.Version))
	}
	disabled, required, kept := c.DisabledPlugins, c.RequiredPlugins, c.Imports
	c.DisabledPlugins, c.RequiredPlugins = nil, nil

	if h.Version <= 1 {
		c.Plugins.aliasShort()
	}
	d := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	if err := d.Decode(c); err != nil {
		unknown, ok := errors.AsType[*toml.StrictMissingError](err)
		if !ok {
			return nil, nil, placed(name, err)
		}
		for _, e := range unknown.Errors {
			row, column := e.Position()
			warnings = append(warnings, Warning{name, row, column, fmt.Sprintf("unknown key %q is ignored", strings.Join(e.Key(), "."))})
		}
	}
	warnings = append(warnings, c.moveLegacy(name, h)...)
	c.DisabledPlugins = joined(disabled, fullNames(h.Version, c.DisabledPlugins))
	c.RequiredPlugins = joined(required, fullNames(h.Version, c.RequiredPlugins))
	c.Imports = kept
	c.Version = Version
	return warnings, h.Imports, nil
}

// placed says where in a file a mistake is.
func placed(name string, err error) error {
	if d, ok := errors.AsType[*toml.DecodeError](err); ok {
		row, column := d.Position()
		where := ""
		if key := strings.Join(d.Key(), "."); key != "" {
			where = key + ": "
		}
		return fmt.Errorf("%s:%d:%d: %s%s: %w", name, row, column, where, strings.TrimPrefix(d.Error(), "toml: "), errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("%s: %v: %w", name, err, errdefs.ErrInvalidArgument)
}

// joined appends what is new.
func joined(to, more []string) []string {
	for _, s := range more {
		if !slices.Contains(to, s) {
			to = append(to, s)
		}
	}
	return to
}

// fullNames expands the names of version 1.
func fullNames(version int, names []string) []string {
	if version > 1 {
		return names
	}
	out := slices.Clone(names)
	for i, name := range out {
		for _, n := range shortNames {
			if n.short == name {
				out[i] = n.full
			}
		}
	}
	return out
}

// Migrate reads the file at path alone, without what it imports, for it to be
// written in the newest version.
func Migrate(path string) (*Config, []Warning, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("read the configuration: %w", err)
	}
	c := Default()
	warnings, imports, err := c.Decode(path, data)
	if err != nil {
		return nil, nil, err
	}
	c.Imports = imports
	return c, warnings, c.Check()
}
