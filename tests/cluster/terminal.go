package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// openTerminal returns both ends of a new pseudo-terminal. The process in the
// terminal gets `inside`; this process keeps `outside`.
func openTerminal() (outside, inside *os.File, err error) {
	// O_NONBLOCK makes the Go runtime poll the file, so that Close ends a pending
	// Read.
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open a pseudo-terminal: %w", err)
	}
	outside = os.NewFile(uintptr(fd), "/dev/ptmx")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		outside.Close()
		return nil, nil, fmt.Errorf("unlock the pseudo-terminal: %w", err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		outside.Close()
		return nil, nil, fmt.Errorf("name the pseudo-terminal: %w", err)
	}
	inside, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		outside.Close()
		return nil, nil, err
	}
	return outside, inside, nil
}

// resizeTerminal sets the size of the terminal, which signals the processes in it.
func resizeTerminal(outside *os.File, rows, columns uint16) error {
	connection, err := outside.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = connection.Control(func(fd uintptr) {
		failed = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	})
	if err != nil {
		return err
	}
	return failed
}
