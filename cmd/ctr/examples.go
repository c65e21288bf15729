package main

import (
	"strings"

	"github.com/urfave/cli/v3"
)

// examplesOf are lines that a person may type, for each command by its path. The
// help shows them; those that say more in their own description are not here.
func examplesOf() map[string][]string {
	const alpine = "docker.io/library/alpine:latest"
	return map[string][]string{
		"": {
			"ctr images pull " + alpine,
			"ctr run --rm -t " + alpine + " shell sh",
			"ctr run -d " + alpine + " web httpd -f",
			"ctr tasks ls",
			"ctr tasks exec --exec-id e1 -t web sh",
			"ctr containers ls --format json",
			"ctr doctor",
		},
		"run": {
			"ctr run --rm " + alpine + " hello echo hello",
			"ctr run --rm -t " + alpine + " shell sh",
			"ctr run -d --cni --env PORT=80 --memory-limit 67108864 --log-uri file:///var/log/web.log docker.io/library/nginx:latest web",
			"ctr run --rm --mount type=bind,src=/srv,dst=/srv,options=rbind:ro " + alpine + " list ls /srv",
			"ctr run --rm --gpus 0 docker.io/nvidia/cuda:12.6.0-base-ubuntu24.04 gpu nvidia-smi",
		},
		"containers create":     {"ctr containers create " + alpine + " web httpd -f"},
		"containers delete":     {"ctr containers rm web", "ctr containers rm --keep-snapshot web"},
		"containers info":       {"ctr containers info web", "ctr containers info --spec web", "ctr containers info --format '{{.Image}}' web"},
		"containers list":       {"ctr containers ls", "ctr containers ls 'labels.app==web'", "ctr containers ls --format '{{.ID}} {{.Image}}'"},
		"containers label":      {"ctr containers label web app=shop", "ctr containers label web app="},
		"containers checkpoint": {"ctr containers checkpoint --task --rw --image web example.com/web:checkpoint"},
		"containers restore":    {"ctr containers restore --live --rw web example.com/web:checkpoint"},

		"content active":           {"ctr content active"},
		"content delete":           {"ctr content rm sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"},
		"content edit":             {"ctr content edit --editor vi sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"},
		"content fetch":            {"ctr content fetch " + alpine},
		"content fetch-object":     {"ctr content fetch-object " + alpine},
		"content fetch-blob":       {"ctr content fetch-blob " + alpine + " sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae >layer.tar.gz"},
		"content get":              {"ctr content get sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae | jq ."},
		"content ingest":           {"ctr content ingest mykey <file"},
		"content list":             {"ctr content ls", "ctr content ls -q", "ctr content ls --format '{{.Digest}} {{.Size}}'"},
		"content push-object":      {"ctr content push-object example.com/web:1 sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae application/vnd.oci.image.manifest.v1+json"},
		"content label":            {"ctr content label sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae containerd.io/gc.root=yes"},
		"content prune references": {"ctr content prune references", "ctr content prune references --dry"},

		"events": {"ctr events", "ctr events 'topic~=/tasks/'", "ctr events --format json"},

		"images check":             {"ctr images check", "ctr images check -q 'name~=alpine'"},
		"images convert":           {"ctr images convert --oci example.com/web:1 example.com/web:1-oci"},
		"images build-erofs-cache": {"ctr images build-erofs-cache example.com/web:1 /srv/erofs"},
		"images delete":            {"ctr images rm " + alpine, "ctr images rm --sync " + alpine},
		"images export":            {"ctr images export alpine.tar " + alpine},
		"images import":            {"ctr images import alpine.tar"},
		"images inspect":           {"ctr images inspect " + alpine},
		"images label":             {"ctr images label " + alpine + " team=shop"},
		"images list":              {"ctr images ls 'name~=alpine'", "ctr images ls --format json"},
		"images mount":             {"ctr images mount " + alpine + " /mnt"},
		"images prune":             {"ctr images prune --all"},
		"images pull":              {"ctr images pull " + alpine, "ctr images pull --plain-http 127.0.0.1:5000/busybox:latest"},
		"images push":              {"ctr images push registry.example.com/web:1", "ctr images push --user me:secret registry.example.com/web:2 example.com/web:1"},
		"images tag":               {"ctr images tag " + alpine + " registry.example.com/alpine:1"},
		"images unmount":           {"ctr images unmount /mnt", "ctr images unmount --rm /mnt"},
		"images usage":             {"ctr images usage " + alpine},

		"install": {"ctr install docker.io/example/runtime-tools:latest", "ctr install --libs --replace --path /usr/local docker.io/example/runtime-tools:latest"},
		"info":    {"ctr info", "ctr info --format '{{.server.Uuid}}'"},
		"version": {"ctr version", "ctr version --format '{{.Server.Version}}'"},

		"leases list":   {"ctr leases ls", "ctr leases ls --format '{{.ID}} {{.CreatedAt}}'"},
		"leases create": {"ctr leases create --id build --expires 1h team=shop"},
		"leases delete": {"ctr leases rm --sync build"},

		"namespaces create": {"ctr namespaces create shop", "ctr namespaces create shop containerd.io/defaults/snapshotter=native"},
		"namespaces list":   {"ctr namespaces ls", "ctr namespaces ls -q"},
		"namespaces remove": {"ctr namespaces rm shop", "ctr namespaces rm --cgroup shop"},
		"namespaces label":  {"ctr namespaces label shop team=a", "ctr namespaces label shop team="},

		"oci spec":                {"ctr oci spec >config.json"},
		"deprecations list":       {"ctr deprecations list", "ctr deprecations list --format json"},
		"plugins list":            {"ctr plugins ls", "ctr plugins ls -d id==overlayfs", "ctr plugins ls --format '{{.Type}} {{.ID}} {{.Status}}'"},
		"plugins inspect-runtime": {"ctr plugins inspect-runtime", "ctr plugins inspect-runtime --runtime io.containerd.kata.v2"},

		"pprof block":        {"ctr pprof block >block.prof"},
		"pprof goroutines":   {"ctr pprof goroutines"},
		"pprof heap":         {"ctr pprof heap >heap.prof && go tool pprof heap.prof"},
		"pprof profile":      {"ctr pprof profile --seconds 10s >cpu.prof"},
		"pprof threadcreate": {"ctr pprof threadcreate >threads.prof"},
		"pprof trace":        {"ctr pprof trace --seconds 3s >trace.out && go tool trace trace.out"},

		"sandboxes run":    {"ctr sandboxes run --runtime io.containerd.kata.v2 pod.json pod1"},
		"sandboxes list":   {"ctr sandboxes ls", "ctr sandboxes ls --filters 'id~=pod'"},
		"sandboxes remove": {"ctr sandboxes rm pod1", "ctr sandboxes rm --force pod1 pod2"},
		"sandboxes info":   {"ctr sandboxes info pod1"},

		"shim delete":             {"ctr shim --id web delete"},
		"shim exec":               {"ctr shim --id web exec --attach --stdout /tmp/out --stderr /tmp/err --spec process.json e1"},
		"shim start":              {"ctr shim --id web start"},
		"shim state":              {"ctr shim --id web state", "ctr shim --shim-address /run/containerd/s/1f3… state --task-id web"},
		"shim shutdown":           {"ctr shim --id web shutdown"},
		"shim pprof block":        {"ctr shim --id web pprof block >block.prof"},
		"shim pprof goroutines":   {"ctr shim --id web pprof goroutines"},
		"shim pprof heap":         {"ctr shim --id web pprof heap >heap.prof"},
		"shim pprof profile":      {"ctr shim --id web pprof profile >cpu.prof"},
		"shim pprof threadcreate": {"ctr shim --id web pprof threadcreate >threads.prof"},
		"shim pprof trace":        {"ctr shim --id web pprof trace >trace.out"},

		"snapshots commit":  {"ctr snapshots commit base work"},
		"snapshots delete":  {"ctr snapshots rm work"},
		"snapshots diff":    {"ctr snapshots diff web >changes.tar.gz"},
		"snapshots info":    {"ctr snapshots info web"},
		"snapshots label":   {"ctr snapshots label web team=shop"},
		"snapshots list":    {"ctr snapshots ls", "ctr snapshots --snapshotter native ls"},
		"snapshots mounts":  {"ctr snapshots mounts /mnt web | sh"},
		"snapshots prepare": {"ctr snapshots prepare --target /mnt work base | sh"},
		"snapshots tree":    {"ctr snapshots tree"},
		"snapshots unpack":  {"ctr snapshots unpack sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"},
		"snapshots usage":   {"ctr snapshots usage", "ctr snapshots usage -b web"},
		"snapshots view":    {"ctr snapshots view --target /mnt look base | sh"},

		"tasks attach":     {"ctr tasks attach web"},
		"tasks checkpoint": {"ctr tasks checkpoint --image-path /var/tmp/web web", "ctr tasks checkpoint --exit web"},
		"tasks delete":     {"ctr tasks rm web", "ctr tasks rm -f web", "ctr tasks rm --exec-id e1 web"},
		"tasks exec":       {"ctr tasks exec --exec-id e1 -t web sh", "ctr tasks exec --exec-id e2 --user www-data --cwd /srv web ls"},
		"tasks list":       {"ctr tasks ls", "ctr tasks ls --format '{{.ID}} {{.Status}}'"},
		"tasks kill":       {"ctr tasks kill web", "ctr tasks kill -s SIGKILL --all web"},
		"tasks metrics":    {"ctr tasks metrics web", "ctr tasks metrics --format json web"},
		"tasks pause":      {"ctr tasks pause web"},
		"tasks ps":         {"ctr tasks ps web"},
		"tasks resume":     {"ctr tasks resume web"},
		"tasks start":      {"ctr tasks start -d web", "ctr tasks start -d --log-uri file:///var/log/web.log web"},

		"completion bash": {"source <(ctr completion bash)"},
		"completion fish": {"ctr completion fish >~/.config/fish/completions/ctr.fish"},
		"completion zsh":  {"source <(ctr completion zsh)"},

		"df":     {"ctr df", "ctr df --verbose --all-namespaces", "ctr df --format '{{range .Images}}{{.Unique}} {{.Name}}{{\"\\n\"}}{{end}}'"},
		"doctor": {"ctr doctor", "ctr doctor --quiet", "ctr doctor --format json"},
		"fsck":   {"ctr fsck", "ctr fsck --repair", "ctr fsck --offline --root /var/lib/containerd"},
		"logs":   {"ctr logs web", "ctr logs -f --tail 20 web", "ctr logs --since 10m web"},
		"top":    {"ctr top", "ctr top --sort memory --all-namespaces", "ctr top --once --format json"},
	}
}

// textWidth is where descriptions are wrapped.
const textWidth = 92

// describe makes a command's description of its prose and its examples.
func describe(c *cli.Command, examples []string) {
	var paragraphs []string
	for _, line := range strings.Split(c.Description, "\n") {
		paragraphs = append(paragraphs, wrap(line, textWidth)...)
	}
	text := strings.TrimSpace(strings.Join(paragraphs, "\n"))
	if len(examples) > 0 && !strings.Contains(text, "Example") {
		title := "Examples:"
		if len(examples) == 1 {
			title = "Example:"
		}
		text = strings.TrimSpace(text + "\n\n" + title + "\n  " + strings.Join(examples, "\n  "))
	}
	c.Description = text
}

// wrap breaks a line between words; one that is indented stays as it is.
func wrap(line string, width int) []string {
	if strings.HasPrefix(line, " ") || len(line) <= width {
		return []string{line}
	}
	var out []string
	current := ""
	for word := range strings.FieldsSeq(line) {
		if current != "" && len(current)+1+len(word) > width {
			out = append(out, current)
			current = ""
		}
		if current != "" {
			current += " "
		}
		current += word
	}
	return append(out, current)
}
