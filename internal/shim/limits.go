package shim

import (
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// logger is the part of slog.Logger that is used here.
type logger interface {
	Warn(msg string, args ...any)
}

// clamp lowers what a process asks for to what this host allows: without
// CAP_SYS_RESOURCE no hard limit can be raised and no oom_score_adj lowered. It
// tells whether it changed anything.
func clamp(p *specs.Process, log logger) (changed bool) {
	return clampOOMScore(p, log)
}

const oomScoreFile = "/proc/self/oom_score_adj"

func clampOOMScore(p *specs.Process, log logger) bool {
	if p.OOMScoreAdj == nil {
		return false
	}
	own, err := os.ReadFile(oomScoreFile)
	if err != nil {
		return false
	}
	current, err := strconv.Atoi(strings.TrimSpace(string(own)))
	if err != nil || *p.OOMScoreAdj >= current {
		return false
	}
	if os.WriteFile(oomScoreFile, []byte(strconv.Itoa(*p.OOMScoreAdj)), 0) == nil {
		// It can be lowered; back to ours, which is higher and so always allowed.
		_ = os.WriteFile(oomScoreFile, own, 0)
		return false
	}
	log.Warn("this host does not let oom_score_adj be lowered", "wanted", *p.OOMScoreAdj, "used", current)
	p.OOMScoreAdj = &current
	return true
}
