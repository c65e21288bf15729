package config

import "fmt"

// aliasShort lets the short tables of version 1 be decoded into the long ones.
func (p *Plugins) aliasShort() {
	p.short = short{
		ShortGC:      &p.GC,
		ShortOpt:     &p.Opt,
		ShortBolt:    &p.Bolt,
		ShortTask:    &p.Task,
		ShortDiff:    &p.Diff,
		ShortNative:  &p.Native,
		ShortOverlay: &p.Overlay,
	}
}

// moveLegacy moves what older versions have elsewhere to its place in version
// 4 and warns of what is out of place. A table in its new place wins over one
// in the old.
func (c *Config) moveLegacy(name string, h head) []Warning {
	var warnings []Warning
	misplaced := func(table, place string) {
		warnings = append(warnings, Warning{File: name, Row: 1, Column: 1, Text: fmt.Sprintf("[%s] belongs to versions before 4; in version %d it is [plugins.'%s']", table, h.Version, place)})
	}
	if h.Version > 1 {
		for _, n := range shortNames {
			if _, ok := h.Plugins[n.short]; ok {
				warnings = append(warnings, Warning{File: name, Row: 1, Column: 1, Text: fmt.Sprintf("[plugins.%s] is ignored: since version 2 its name is %s", n.short, n.full)})
			}
		}
	}
	c.Plugins.short = short{}

	has := func(table string) bool { _, ok := h.Plugins[table]; return ok }
	const (
		grpc, tcp, ttrpc = "io.containerd.server.v1.grpc", "io.containerd.server.v1.grpc-tcp", "io.containerd.server.v1.ttrpc"
		debug, metrics   = "io.containerd.server.v1.debug", "io.containerd.server.v1.metrics"
	)
	if old := c.GRPC; old != nil {
		if h.Version >= 4 {
			misplaced("grpc", grpc)
		}
		if !has(grpc) {
			c.moveGRPC(old)
		}
		if !has(tcp) && old.TCPAddress != "" {
			c.moveTCP(old)
		}
	}
	if old := c.TTRPC; old != nil && !has(ttrpc) {
		if h.Version >= 4 {
			misplaced("ttrpc", ttrpc)
		}
		if old.Address != "" {
			c.Plugins.TTRPC.Address = old.Address
		}
		c.Plugins.TTRPC.UID, c.Plugins.TTRPC.GID = old.UID, old.GID
	}
	if c.Debug.Address != "" && !has(debug) {
		if h.Version >= 4 {
			misplaced("debug", debug)
		}
		c.Plugins.DebugServer = DebugServer{Address: c.Debug.Address, UID: c.Debug.UID, GID: c.Debug.GID}
	}
	if old := c.Metrics; old != nil && old.Address != "" && !has(metrics) {
		if h.Version >= 4 {
			misplaced("metrics", metrics)
		}
		c.Plugins.MetricServer.Address = old.Address
	}
	c.Debug.Address, c.Debug.UID, c.Debug.GID = "", 0, 0
	c.GRPC, c.TTRPC, c.Metrics = nil, nil, nil
	c.placeTTRPC(has(ttrpc))
	return warnings
}

// placeTTRPC puts the ttrpc socket beside the gRPC socket when only that was
// given a place.
//
// Differs from containerd: there a version 4 file must place both, and two
// daemons whose files do not fight for one ttrpc socket.
func (c *Config) placeTTRPC(given bool) {
	if !given && c.Plugins.TTRPC.Address == DefaultAddress+".ttrpc" {
		c.Plugins.TTRPC.Address = c.Plugins.GRPC.Address + ".ttrpc"
		if c.Plugins.TTRPC.UID == 0 && c.Plugins.TTRPC.GID == 0 {
			c.Plugins.TTRPC.UID, c.Plugins.TTRPC.GID = c.Plugins.GRPC.UID, c.Plugins.GRPC.GID
		}
	}
}

func (c *Config) moveGRPC(old *legacyGRPC) {
	g := &c.Plugins.GRPC
	if old.Address != "" {
		g.Address, g.UID, g.GID = old.Address, old.UID, old.GID
	}
	if old.UID != 0 {
		g.UID = old.UID
	}
	if old.GID != 0 {
		g.GID = old.GID
	}
	setIf(&g.MaxRecvMsgSize, old.MaxRecvMsgSize)
	setIf(&g.MaxSendMsgSize, old.MaxSendMsgSize)
}

func (c *Config) moveTCP(old *legacyGRPC) {
	t := &c.Plugins.GRPCTCP
	t.Address = old.TCPAddress
	t.TLSCA, t.TLSCert, t.TLSKey, t.TLSName = old.TCPTLSCA, old.TCPTLSCert, old.TCPTLSKey, old.TCPTLSName
	setIf(&t.MaxRecvMsgSize, old.MaxRecvMsgSize)
	setIf(&t.MaxSendMsgSize, old.MaxSendMsgSize)
}

func setIf(to *int, v int) {
	if v != 0 {
		*to = v
	}
}
