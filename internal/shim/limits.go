package shim

import (
	"log/slog"
	"os"
	"strconv"
	"strings"

	"berth/internal/ociruntime"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// clamp lowers what a process asks for to what this host allows: without
// CAP_SYS_RESOURCE no hard limit can be raised and no oom_score_adj lowered. It
// tells whether it changed anything.
func clamp(p *specs.Process, log *slog.Logger) (changed bool) {
	if clampOOMScore(p, log) {
		changed = true
	}
	if len(p.Rlimits) > 0 && !hasSysResource() && clampRlimits(p, log) {
		changed = true
	}
	return changed
}

const oomScoreFile = "/proc/self/oom_score_adj"

func clampOOMScore(p *specs.Process, log *slog.Logger) bool {
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

// hasSysResource tells whether CAP_SYS_RESOURCE is effective.
func hasSysResource() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	return data[unix.CAP_SYS_RESOURCE/32].Effective&(1<<(unix.CAP_SYS_RESOURCE%32)) != 0
}

func clampRlimits(p *specs.Process, log *slog.Logger) (changed bool) {
	for i := range p.Rlimits {
		r := &p.Rlimits[i]
		number, err := ociruntime.Rlimit(r.Type)
		var own unix.Rlimit
		if err != nil || unix.Prlimit(0, number, nil, &own) != nil || r.Hard <= own.Max {
			continue
		}
		log.Warn("this host does not let a hard limit be raised", "limit", r.Type, "wanted", r.Hard, "used", own.Max)
		r.Hard = own.Max
		r.Soft = min(r.Soft, r.Hard)
		changed = true
	}
	return changed
}
