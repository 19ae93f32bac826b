"""The roof: command line, configuration, the Ray session, runs and reports. Imports all the other packages."""
