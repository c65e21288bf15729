package cgroup

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// memoryKeys1 are the keys of memory.stat, in the order of the message's fields.
func memoryKeys1() []key {
	return keysFrom(1,
		"cache", "rss", "rss_huge", "mapped_file", "dirty", "writeback", "pgpgin", "pgpgout", "pgfault", "pgmajfault",
		"inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable", "hierarchical_memory_limit", "hierarchical_memsw_limit",
		"total_cache", "total_rss", "total_rss_huge", "total_mapped_file", "total_dirty", "total_writeback", "total_pgpgin", "total_pgpgout", "total_pgfault", "total_pgmajfault",
		"total_inactive_anon", "total_active_anon", "total_inactive_file", "total_active_file", "total_unevictable",
	)
}

func keysFrom(field protowire.Number, names ...string) []key {
	keys := make([]key, len(names))
	for i, n := range names {
		keys[i] = key{field + protowire.Number(i), n}
	}
	return keys
}

// ticks per second of cpuacct.stat: USER_HZ, which is 100 for every program.
const ticks = 100

func (g Group) metrics1() []byte {
	var m message
	if dir, ok := g.paths["hugetlb"]; ok {
		for _, size := range hugePages(dir, ".usage_in_bytes") {
			var h message
			h.uint(1, only(number(dir, "hugetlb."+size+".usage_in_bytes", 0)))
			h.uint(2, only(number(dir, "hugetlb."+size+".max_usage_in_bytes", 0)))
			h.uint(3, only(number(dir, "hugetlb."+size+".failcnt", 0)))
			h.string(4, size)
			m.sub(1, h)
		}
	}
	if dir, ok := g.paths["pids"]; ok {
		var p message
		p.uint(1, only(number(dir, "pids.current", 0)))
		p.uint(2, only(number(dir, "pids.max", 0)))
		m.sub(2, p)
	}
	m.sub(3, g.cpu1())
	if dir, ok := g.paths["memory"]; ok {
		m.sub(4, memory1(dir))
	}
	if dir, ok := g.paths["blkio"]; ok {
		m.sub(5, blkio1(dir))
	}
	if dir, ok := g.paths["rdma"]; ok {
		m.sub(6, rdma(dir))
	}
	if dir, ok := g.paths["memory"]; ok {
		var o message
		o.table(keysFrom(1, "oom_kill_disable", "under_oom", "oom_kill"), pairs(dir, "memory.oom_control"))
		m.sub(9, o)
	}
	return m
}

func only(n uint64, _ bool) uint64 { return n }

func (g Group) cpu1() (m message) {
	var usage message
	if dir, ok := g.paths["cpuacct"]; ok {
		usage.uint(1, only(number(dir, "cpuacct.usage", 0)))
		stat := pairs(dir, "cpuacct.stat")
		usage.uint(2, stat["system"]*(1e9/ticks))
		usage.uint(3, stat["user"]*(1e9/ticks))
		var each []uint64
		for _, line := range fields(dir, "cpuacct.usage_percpu") {
			for _, f := range line {
				n, _ := strconv.ParseUint(f, 10, 64)
				each = append(each, n)
			}
		}
		usage.packed(4, each)
	}
	m.sub(1, usage)
	var throttling message
	if dir, ok := g.paths["cpu"]; ok {
		throttling.table(keysFrom(1, "nr_periods", "nr_throttled", "throttled_time"), pairs(dir, "cpu.stat"))
	}
	m.sub(2, throttling)
	return m
}

func memory1(dir string) (m message) {
	m.table(memoryKeys1(), pairs(dir, "memory.stat"))
	for i, part := range []string{"memory", "memory.memsw", "memory.kmem", "memory.kmem.tcp"} {
		var e message
		if _, ok := number(dir, part+".usage_in_bytes", 0); !ok {
			continue // swap and kernel memory are not counted on every host
		}
		for j, file := range []string{".limit_in_bytes", ".usage_in_bytes", ".max_usage_in_bytes", ".failcnt"} {
			e.uint(protowire.Number(1+j), only(number(dir, part+file, 0)))
		}
		m.sub(protowire.Number(33+i), e)
	}
	return m
}

// blkio1 reads what the BFQ scheduler counts, and else what throttling does.
func blkio1(dir string) (m message) {
	names := []string{"io_service_bytes_recursive", "io_serviced_recursive", "io_queued_recursive", "io_service_time_recursive", "io_wait_time_recursive", "io_merged_recursive", "time_recursive", "sectors_recursive"}
	for i, name := range names {
		lines := fields(dir, "blkio.bfq."+name)
		if len(lines) < 2 {
			if other := fields(dir, "blkio.throttle."+name); len(other) > 0 {
				lines = other
			}
		}
		for _, f := range lines {
			// "8:0 Read 4096"; the total of all devices is "Total 4096".
			if len(f) != 3 && !(len(f) == 2 && strings.Contains(f[0], ":")) {
				continue
			}
			major, minor, _ := strings.Cut(f[0], ":")
			value, err := strconv.ParseUint(f[len(f)-1], 10, 64)
			if err != nil {
				continue
			}
			var e message
			if len(f) == 3 {
				e.string(1, f[1])
			}
			e.string(2, device(f[0]))
			e.uint(3, only(parseNumber(major, 0)))
			e.uint(4, only(parseNumber(minor, 0)))
			e.uint(5, value)
			m.sub(protowire.Number(1+i), e)
		}
	}
	return m
}

// device is the path of a block device by its numbers, empty when it is gone.
func device(numbers string) string {
	target, err := os.Readlink(filepath.Join("/sys/dev/block", numbers))
	if err != nil {
		return ""
	}
	return filepath.Join("/dev", filepath.Base(target))
}

// rdma reads rdma.current and rdma.max, the same in both versions:
// "mlx4_0 hca_handle=2 hca_object=2000".
func rdma(dir string) (m message) {
	for i, file := range []string{"rdma.current", "rdma.max"} {
		for _, f := range fields(dir, file) {
			var e message
			e.string(1, f[0])
			for _, kv := range f[1:] {
				k, v, _ := strings.Cut(kv, "=")
				n, _ := parseNumber(v, 1<<32-1)
				switch k {
				case "hca_handle":
					e.uint(2, n)
				case "hca_object":
					e.uint(3, n)
				}
			}
			m.sub(protowire.Number(1+i), e)
		}
	}
	return m
}

// hugePages lists the page sizes that have files with the suffix.
func hugePages(dir, suffix string) (sizes []string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if size, ok := strings.CutPrefix(e.Name(), "hugetlb."); ok {
			if size, ok = strings.CutSuffix(size, suffix); ok && !strings.Contains(size, ".") {
				sizes = append(sizes, size)
			}
		}
	}
	return sizes
}
