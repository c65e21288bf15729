package cgroup

import (
	"math"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

func cpuKeys2() []key {
	return append(keysFrom(1, "usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec"), keysFrom(8, "nr_bursts", "burst_usec")...)
}

// memoryKeys2 are the keys of memory.stat, in the order of the message's fields.
func memoryKeys2() []key {
	return keysFrom(1,
		"anon", "file", "kernel_stack", "slab", "sock", "shmem", "file_mapped", "file_dirty", "file_writeback", "anon_thp",
		"inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable", "slab_reclaimable", "slab_unreclaimable", "pgfault", "pgmajfault",
		"workingset_refault", "workingset_activate", "workingset_nodereclaim", "pgrefill", "pgscan", "pgsteal", "pgactivate", "pgdeactivate", "pglazyfree", "pglazyfreed",
		"thp_fault_alloc", "thp_collapse_alloc",
	)
}

func (g Group) metrics2() []byte {
	dir := g.paths[""]
	var m, pids, cpu, memory, events, io message
	pids.uint(1, only(number(dir, "pids.current", 0)))
	pids.uint(2, only(number(dir, "pids.max", 0)))
	m.sub(1, pids)

	cpu.table(cpuKeys2(), pairs(dir, "cpu.stat"))
	pressure(&cpu, 7, dir, "cpu.pressure")
	m.sub(2, cpu)

	stat := pairs(dir, "memory.stat")
	if _, ok := stat["workingset_refault"]; !ok {
		// Since Linux 5.9 these are counted apart for anonymous memory and files.
		stat = split(stat)
	}
	memory.table(memoryKeys2(), stat)
	for _, k := range keysFrom(32, "memory.current", "memory.max", "memory.swap.current", "memory.swap.max", "memory.peak", "memory.swap.peak") {
		memory.uint(k.field, only(number(dir, k.name, math.MaxUint64)))
	}
	pressure(&memory, 38, dir, "memory.pressure")
	m.sub(4, memory)

	m.sub(5, rdma(dir))

	for _, f := range fields(dir, "io.stat") {
		major, minor, ok := strings.Cut(f[0], ":")
		if !ok {
			continue
		}
		var e message
		e.uint(1, only(parseNumber(major, 0)))
		e.uint(2, only(parseNumber(minor, 0)))
		for _, kv := range f[1:] {
			k, v, _ := strings.Cut(kv, "=")
			n, _ := parseNumber(v, 0)
			switch k {
			case "rbytes":
				e.uint(3, n)
			case "wbytes":
				e.uint(4, n)
			case "rios":
				e.uint(5, n)
			case "wios":
				e.uint(6, n)
			}
		}
		io.sub(1, e)
	}
	pressure(&io, 2, dir, "io.pressure")
	m.sub(6, io)

	for _, size := range hugePages(dir, ".current") {
		var h message
		h.uint(1, only(number(dir, "hugetlb."+size+".current", 0)))
		h.uint(2, only(number(dir, "hugetlb."+size+".max", math.MaxUint64)))
		h.string(3, size)
		h.uint(4, pairs(dir, "hugetlb."+size+".events")["max"])
		m.sub(7, h)
	}
	events.table(keysFrom(1, "low", "high", "max", "oom", "oom_kill", "oom_group_kill"), pairs(dir, "memory.events"))
	m.sub(8, events)
	return m
}

func split(stat map[string]uint64) map[string]uint64 {
	for _, k := range []string{"workingset_refault", "workingset_activate"} {
		if stat != nil {
			stat[k] = stat[k+"_anon"] + stat[k+"_file"]
		}
	}
	return stat
}

// pressure writes a file of pressure stall information, if there is one:
// "some avg10=0.00 avg60=0.00 avg300=0.00 total=0", and the same for "full".
func pressure(m *message, field protowire.Number, dir, file string) {
	var psi message
	for _, f := range fields(dir, file) {
		var d message
		for _, kv := range f[1:] {
			k, v, _ := strings.Cut(kv, "=")
			x, _ := strconv.ParseFloat(v, 64)
			switch k {
			case "avg10":
				d.double(1, x)
			case "avg60":
				d.double(2, x)
			case "avg300":
				d.double(3, x)
			case "total":
				d.uint(4, only(parseNumber(v, 0)))
			}
		}
		switch f[0] {
		case "some":
			psi.sub(1, d)
		case "full":
			psi.sub(2, d)
		}
	}
	if len(psi) > 0 {
		m.sub(field, psi)
	}
}
