package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stopGrace is how long a component may run after SIGTERM. An apiserver with
// open watches would need a minute, but the tests only need it to stop accepting
// and to tell its clients, which it does at once.
const stopGrace = 4 * time.Second

// component is a running etcd or kube-apiserver.
type component struct {
	name    string
	command *exec.Cmd
	logFile string
	// done is closed when the process ends.
	done chan struct{}
}

// startComponent starts etcd or kube-apiserver: the binary in KUBEBUILDER_ASSETS
// if that directory has one, else this binary with the name of the component
// as its subcommand. Both accept the same flags.
//
// Call it on the main goroutine; see init.
func startComponent(name, dir string, args []string) (*component, error) {
	program := ""
	if assets := os.Getenv("KUBEBUILDER_ASSETS"); assets != "" {
		if found, err := exec.LookPath(filepath.Join(assets, name)); err == nil {
			program = found
		}
	}
	if program == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		program, args = self, append([]string{name}, args...)
	}
	logFile := filepath.Join(dir, name+".log")
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()

	command := exec.Command(program, args...)
	command.Dir = dir
	command.Env = componentEnvironment()
	command.Stdout, command.Stderr = log, log
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		return nil, err
	}
	c := &component{name: name, command: command, logFile: logFile, done: make(chan struct{})}
	go func() {
		// Only the end of the process matters here. Its log says why it ended.
		_ = command.Wait()
		close(c.done)
	}()
	return c, nil
}

// stop sends SIGTERM, and kills the process after stopGrace.
func (c *component) stop() {
	_ = c.command.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.done:
	case <-time.After(stopGrace):
		c.kill()
	}
}

// kill ends the process at once. Nothing uses its data afterwards.
func (c *component) kill() {
	_ = c.command.Process.Kill()
	<-c.done
}

// failure is the error for a component that ended unexpectedly.
func (c *component) failure() error {
	log, _ := os.ReadFile(c.logFile)
	const tail = 4096
	if len(log) > tail {
		log = log[len(log)-tail:]
	}
	return fmt.Errorf("%s ended unexpectedly; the end of its log:\n%s", c.name, log)
}

// componentEnvironment is the environment of this process without the variables
// that etcd reads as settings. A developer's shell may have them for another
// cluster.
func componentEnvironment() []string {
	var kept []string
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "ETCD_") {
			kept = append(kept, entry)
		}
	}
	return kept
}

// reservedPort is a TCP port on 127.0.0.1 that no other process can take while nothing serves it.
type reservedPort struct {
	port   int
	socket int
}

// reservePort lets the kernel choose a port and keeps it. The components cannot
// use port 0, because a restarted apiserver must use the same port as before. A
// socket that is bound with SO_REUSEPORT but does not listen keeps other
// processes away, lets a component with the same option bind, and receives no
// connection.
func reservePort() (*reservedPort, error) {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1); err != nil {
		unix.Close(socket)
		return nil, err
	}
	if err := unix.Bind(socket, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		unix.Close(socket)
		return nil, err
	}
	bound, err := unix.Getsockname(socket)
	if err != nil {
		unix.Close(socket)
		return nil, err
	}
	return &reservedPort{port: bound.(*unix.SockaddrInet4).Port, socket: socket}, nil
}

func (p *reservedPort) address() string {
	return net.JoinHostPort("127.0.0.1", fmt.Sprint(p.port))
}

func (p *reservedPort) release() {
	unix.Close(p.socket)
}
