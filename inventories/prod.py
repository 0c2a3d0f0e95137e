"""An example to copy: one bastion, a fleet of GPU hosts. Names and addresses here, values in group_data/.

Host keys are checked against the file beside this one: `ssh-keyscan ADDRESS… > inventories/known_hosts` (each `ssh_hostname`), compare
the fingerprints with what the machines' consoles show, and commit it.
"""

SSH = {
    "ssh_user": "deploy",
    "_sudo": True,
    "ssh_known_hosts_file": "inventories/known_hosts",
    "ssh_strict_host_key_checking": "yes",
}

bastion = [("bastion", {**SSH, "ssh_hostname": "bastion.example.internal"})]

gpu_hosts = [
    ("gpu-01", {**SSH, "ssh_hostname": "gpu-01.example.internal"}),
    ("gpu-02", {**SSH, "ssh_hostname": "gpu-02.example.internal"}),
    ("gpu-03", {**SSH, "ssh_hostname": "gpu-03.example.internal"}),
]
