package restart

import (
	"encoding/json"

	"berth/internal/object"
)

// hasTerminal tells whether the container's init process has a terminal.
func hasTerminal(c object.Container) bool {
	var spec struct {
		Process struct {
			Terminal bool `json:"terminal"`
		} `json:"process"`
	}
	return c.Spec != nil && json.Unmarshal(c.Spec.Value, &spec) == nil && spec.Process.Terminal
}
