package main

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// leashed runs a command until standard input ends. Then it sends SIGTERM to the
// command, and kills it after stopGrace. It is for programs that do not notice
// the end of their parent. If the command ends first, it exits with the same code.
func leashed(args []string) error {
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		return errors.New("no command")
	}
	command := exec.Command(args[0], args[1:]...)
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := command.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	ctx, cancel := untilInputEnds()
	defer cancel()

	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
		_ = command.Process.Signal(syscall.SIGTERM)
		select {
		case err = <-ended:
		case <-time.After(stopGrace):
			_ = command.Process.Kill()
			err = <-ended
		}
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		os.Exit(max(exit.ExitCode(), 1))
	}
	return err
}
