// Command hello is the only program of the demo's image: it tells what a
// process sees from inside its container.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	namespaces := flag.Bool("namespaces", false, "print the namespaces only")
	quiet := flag.Bool("quiet", false, "print nothing")
	wait := flag.Bool("wait", false, "wait for a signal")
	flag.Parse()
	switch {
	case *quiet:
		return
	case *namespaces:
		for _, link := range links() {
			fmt.Println(link)
		}
		return
	case *wait:
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM, syscall.SIGINT)
		<-c
		return
	}
	fmt.Print("the container:  ")
	for _, link := range links() {
		fmt.Print(link, " ")
	}
	fmt.Println()
	host, _ := os.Hostname()
	entries, _ := os.ReadDir("/")
	fmt.Printf("pid %d, user %d, host name %q, GREETING=%q\n", os.Getpid(), os.Getuid(), host, os.Getenv("GREETING"))
	fmt.Print("in /:")
	for _, e := range entries {
		fmt.Print(" ", e.Name())
	}
	fmt.Println()
}

func links() []string {
	var out []string
	for _, ns := range []string{"mnt", "pid", "net", "ipc", "uts"} {
		link, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			link = ns + ": " + err.Error()
		}
		out = append(out, link)
	}
	return out
}
