package config

import (
	"fmt"
	"maps"
	"slices"

	"github.com/pelletier/go-toml/v2"
)

// Changes names the keys whose values differ between two configurations, in
// order: "debug.level". A table of which one side has nothing is one key.
func Changes(a, b *Config) []string {
	var keys []string
	changes(a.values(), b.values(), nil, &keys)
	slices.Sort(keys)
	return keys
}

func (c *Config) values() map[string]any {
	var m map[string]any
	data, err := c.TOML()
	if err == nil {
		err = toml.Unmarshal(data, &m)
	}
	if err != nil {
		// A configuration can be written and read again (see FuzzDecode).
		panic(fmt.Sprintf("configuration: %v", err))
	}
	return m
}

func changes(a, b map[string]any, prefix []string, keys *[]string) {
	all := maps.Clone(a)
	maps.Copy(all, b)
	for key := range all {
		path := append(slices.Clip(prefix), key)
		ta, isA := a[key].(map[string]any)
		tb, isB := b[key].(map[string]any)
		switch {
		case isA && isB:
			changes(ta, tb, path, keys)
		case fmt.Sprintf("%#v", a[key]) != fmt.Sprintf("%#v", b[key]):
			*keys = append(*keys, keyName(path))
		}
	}
}
