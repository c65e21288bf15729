package config

import "github.com/pelletier/go-toml/v2"

// TOML writes c as a file of version 4.
func (c *Config) TOML() ([]byte, error) { return toml.Marshal(c) }
