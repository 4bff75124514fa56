"""What everything else stands on: settings, errors, files, run directories, ranks and seeds."""
