// Command mkimage packs static programs into an image archive, an OCI layout:
//
//	mkimage -name example.com/hello:1 -o hello.tar PROGRAM...
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"berth/test/testimage"

	ispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func main() {
	name := flag.String("name", "", "name of the image")
	out := flag.String("o", "", "archive to write")
	asBusybox := flag.Bool("busybox", false, "PROGRAM is a static busybox: add its applets, users and a home")
	flag.Parse()
	if *name == "" || *out == "" || flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*name, *out, *asBusybox, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func run(name, out string, asBusybox bool, programs []string) error {
	img, err := build(name, asBusybox, programs)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(out, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := testimage.WriteOCI(f, img); err != nil {
		return err
	}
	return f.Close()
}

func build(name string, asBusybox bool, programs []string) (testimage.Image, error) {
	if asBusybox {
		b, err := os.ReadFile(programs[0])
		if err != nil {
			return testimage.Image{}, err
		}
		return testimage.Busybox(name, b)
	}
	entries := []testimage.Entry{testimage.Dir("proc", 0o555), testimage.Dir("sys", 0o555), testimage.Dir("dev", 0o755), testimage.Dir("tmp", 0o1777)}
	for _, p := range programs {
		b, err := os.ReadFile(p)
		if err != nil {
			return testimage.Image{}, err
		}
		entries = append(entries, testimage.File(filepath.Base(p), 0o755, b))
	}
	layer, err := testimage.Layer(entries...)
	if err != nil {
		return testimage.Image{}, err
	}
	return testimage.Image{
		Names:  []string{name},
		Layers: [][]byte{layer},
		Config: ispec.ImageConfig{Cmd: []string{"/" + filepath.Base(programs[0])}},
	}, nil
}
