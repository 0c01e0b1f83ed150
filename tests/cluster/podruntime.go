package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// streamIdle is the kubelet's limit for an idle stream.
const streamIdle = 4 * time.Hour

// podRuntime runs the processes for exec, attach and port-forward.
type podRuntime struct {
	root string

	mu      sync.Mutex
	closed  bool
	running map[*exec.Cmd]struct{}
}

// ExecInContainer runs a command in the directory of the pod. If the exit code is
// not 0, the error contains it.
func (p *podRuntime) ExecInContainer(_ context.Context, pod, _, _ string, args []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	if len(args) == 0 {
		return errors.New("no command")
	}
	command := exec.Command(args[0], args[1:]...)
	command.Dir = filepath.Join(p.root, pod)
	command.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + command.Dir, "HOSTNAME=" + pod, "TERM=dumb", "LC_ALL=C",
	}
	var err error
	if tty {
		err = p.runInTerminal(command, in, out, resize)
	} else {
		err = p.runWithPipes(command, in, out, errOut)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &utilexec.ExitErrorWrapper{ExitError: exit}
	}
	return err
}

// AttachContainer attaches to the main process of a container. It writes one line
// and then repeats its input.
func (p *podRuntime) AttachContainer(ctx context.Context, pod, uid, container string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	main := []string{"/bin/sh", "-c", "echo attached; exec cat"}
	return p.ExecInContainer(ctx, pod, uid, container, main, in, out, errOut, tty, resize, 0)
}

// PortForward joins the stream to a TCP port of this machine. Only an unreachable
// port is an error: kubectl ends all of its forwarding on an error, so a client
// that went away must not be one.
func (p *podRuntime) PortForward(ctx context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	var dialer net.Dialer
	connection, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", fmt.Sprint(port)))
	if err != nil {
		return err
	}
	defer connection.Close()
	go func() {
		_, err := io.Copy(connection, stream)
		if err != nil {
			// The client went away without closing the stream, so no response can reach it.
			connection.Close()
			return
		}
		_ = connection.(*net.TCPConn).CloseWrite()
	}()
	// The connection ends when the server has sent everything.
	_, _ = io.Copy(stream, connection)
	return nil
}

func (p *podRuntime) runWithPipes(command *exec.Cmd, in io.Reader, out, errOut io.WriteCloser) error {
	// stdin must be an *os.File: with any other reader, Wait would wait for the
	// end of the client's input even after the command has ended.
	if in != nil {
		input, err := command.StdinPipe()
		if err != nil {
			return err
		}
		go func() {
			_, _ = io.Copy(input, in)
			_ = input.Close()
		}()
	}
	// A nil interface value, not a nil stream in an interface, means /dev/null.
	if out != nil {
		command.Stdout = out
	}
	if errOut != nil {
		command.Stderr = errOut
	}
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.start(command); err != nil {
		return err
	}
	defer p.forget(command)
	return command.Wait()
}

func (p *podRuntime) runInTerminal(command *exec.Cmd, in io.Reader, out io.Writer, resize <-chan remotecommand.TerminalSize) error {
	outside, inside, err := openTerminal()
	if err != nil {
		return err
	}
	// Closing this end sends a hangup to the processes that still run in the terminal.
	defer outside.Close()
	command.Stdin, command.Stdout, command.Stderr = inside, inside, inside
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	err = p.start(command)
	inside.Close()
	if err != nil {
		return err
	}
	defer p.forget(command)
	go func() {
		for size := range resize {
			_ = resizeTerminal(outside, size.Height, size.Width)
		}
	}()
	if in != nil {
		go func() {
			_, _ = io.Copy(outside, in)
			// The client went away. This sends a hangup, as closing a terminal window does.
			_ = syscall.Kill(-command.Process.Pid, syscall.SIGHUP)
		}()
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		if out != nil {
			// The read fails with EIO when the last process has closed the terminal.
			_, _ = io.Copy(out, outside)
		}
	}()
	err = command.Wait()
	select {
	case <-drained:
	case <-time.After(time.Second):
		// A process that the command started still has the terminal open.
	}
	return err
}

// start starts a command. The method close ends it.
func (p *podRuntime) start(command *exec.Cmd) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errors.New("the node is shutting down")
	}
	if err := command.Start(); err != nil {
		return err
	}
	if p.running == nil {
		p.running = map[*exec.Cmd]struct{}{}
	}
	p.running[command] = struct{}{}
	return nil
}

func (p *podRuntime) forget(command *exec.Cmd) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.running, command)
}

// close ends every command, together with the processes that it started.
func (p *podRuntime) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for command := range p.running {
		_ = syscall.Kill(-command.Process.Pid, syscall.SIGKILL)
	}
}
