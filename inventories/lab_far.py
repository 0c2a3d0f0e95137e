"""The lab's far side, where no wire comes from the bastion: lab-gpu3 is its bastion, lab-gpu4 its one GPU host."""

SSH = {
    "ssh_user": "root",
    "ssh_key": "tests/lab/state/id_ed25519",
    "ssh_known_hosts_file": "tests/lab/state/known_hosts",
    "ssh_strict_host_key_checking": "yes",
}

bastion = [("lab-gpu3", {**SSH, "ssh_hostname": "10.77.2.13"})]

gpu_hosts = [("lab-gpu4", {**SSH, "ssh_hostname": "10.77.2.14"})]
