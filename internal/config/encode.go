package config

import (
	"bytes"

	"github.com/pelletier/go-toml/v2"
)

// TOML writes c as a file of the newest version, without comments.
func (c *Config) TOML() ([]byte, error) {
	data, err := c.Commented()
	if err != nil {
		return nil, err
	}
	var out []byte
	for line := range bytes.Lines(data) {
		if !bytes.HasPrefix(bytes.TrimLeft(line, " "), []byte("#")) {
			out = append(out, line...)
		}
	}
	return out, nil
}

// Commented writes c as a file of the newest version that explains its keys.
// No value spans lines: what begins with # is a comment.
func (c *Config) Commented() ([]byte, error) {
	data, err := encode(c)
	if err != nil || len(c.Others) == 0 {
		return data, err
	}
	others, err := encode(map[string]any{"plugins": c.Others})
	if err != nil {
		return nil, err
	}
	// The table itself has been begun above; its parts may come later.
	_, others, _ = bytes.Cut(others, []byte("[plugins]\n"))
	return append(append(data, '\n'), others...), nil
}

func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	err := toml.NewEncoder(&b).SetIndentTables(true).Encode(v)
	return b.Bytes(), err
}
