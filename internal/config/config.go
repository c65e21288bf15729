// Package config is the daemon's configuration: containerd's config.toml with
// its table names, versions 2 to 4, as typed structs with their defaults.
package config
