// Command fixture runs a real kube-apiserver, a real etcd and a stand-in kubelet,
// for tests that need the Kubernetes API and its streaming verbs.
//
// The same binary contains the components and the small clients of the tests,
// because each of them needs the Kubernetes libraries, which are slow to link
// twice.
package main

import (
	"fmt"
	"os"
	"runtime"

	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func init() {
	// The kernel sends a parent-death signal when the parent's *thread* ends.
	// The main goroutine starts the components, so it must stay on the main
	// thread, which lives as long as the process.
	runtime.LockOSThread()
}

func main() {
	name, args := "serve", os.Args[1:]
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	if err := run(name, args); err != nil {
		fmt.Fprintln(os.Stderr, "fixture "+name+":", err)
		os.Exit(1)
	}
}

func run(name string, args []string) error {
	switch name {
	case "serve":
		return serve()
	case "etcd":
		etcdmain.Main(append([]string{"etcd"}, args...))
		return nil
	case "kube-apiserver":
		command := app.NewAPIServerCommand()
		command.SetArgs(args)
		os.Exit(cli.Run(command))
		return nil
	case "fetch":
		return fetch(args)
	case "fill":
		return fill(args)
	case "gets":
		return gets(args)
	case "hammer":
		return hammer(args)
	case "informers":
		return runInformers(args)
	case "leash":
		return leashed(args)
	case "pty":
		return underTerminal(args)
	case "reflect":
		return reflectConfigMaps(args)
	case "spellings":
		return spellings(args)
	case "watches":
		return watches(args)
	default:
		return fmt.Errorf("unknown subcommand")
	}
}
